//! Frames built with `etherparse`, cut and bent by hand.
