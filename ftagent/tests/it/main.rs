//! The engine against scripts, generated floods, real captures and random inputs.

mod captures;
mod cost;
mod floods;
mod frames;
mod kernel;
mod properties;
mod scripts;
