//! Keys and certificates: what the built-in authority signs. Called by `app`, which knows who may have what.
//!
//! Keys are ECDSA P-256, which every TLS library takes. Nothing here reads a clock or a file.

use std::net::IpAddr;

use ftagent_common::api::CertificateRequest;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{BACKDATE_SECS, Fingerprint, Problem, ROOT_SECS, SERVER_SECS, Timestamp, hex};

/// Bytes of a request, PEM.
const CSR_BYTES: usize = 8_192;

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("the operating system gives no random numbers")]
    Random,
    #[error("{0} is no name that a certificate can have: give DNS names or addresses")]
    Name(String),
    #[error("a certificate cannot be made")]
    Made(#[from] rcgen::Error),
}

/// A root that was made.
pub struct MadeRoot {
    pub name: String,
    pub certificate: CertificateDer<'static>,
    /// PKCS #8, DER.
    pub key: Vec<u8>,
    pub not_after: Timestamp,
}

/// A certificate that was made.
#[derive(Debug)]
pub struct Made {
    pub certificate: CertificateDer<'static>,
    /// Hexadecimal.
    pub serial: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// A root with its key, that signs.
pub struct Signer(Issuer<'static, KeyPair>);

/// SHA-256 of a certificate.
pub fn fingerprint(certificate: &[u8]) -> Fingerprint {
    Fingerprint(Sha256::digest(certificate).into())
}

/// When a certificate ends, if that can be read of it.
pub fn ends(certificate: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Timestamp::from_secs(certificate.validity().not_after.timestamp()))
}

/// A certificate as PEM.
pub fn pem(certificate: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let encoded = base64(certificate);
    for line in encoded.as_bytes().chunks(64) {
        writeln!(text, "{}", String::from_utf8_lossy(line)).expect("a String takes every write");
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().enumerate().fold(0_u32, |word, (n, byte)| word | u32::from(*byte) << (16 - 8 * n));
        for n in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn params(common_name: &str, from: Timestamp, until: Timestamp) -> Result<(CertificateParams, String), PkiError> {
    let mut serial = [0; 16];
    rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, &mut serial).map_err(|_| PkiError::Random)?;
    // Positive and without a leading zero, so that every library writes it alike.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.not_before = whole_second(from);
    params.not_after = whole_second(until);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.use_authority_key_identifier_extension = true;
    Ok((params, hex(&serial)))
}

fn whole_second(at: Timestamp) -> OffsetDateTime {
    Timestamp::from_secs(at.secs()).into()
}

/// Makes a root.
///
/// # Errors
/// The operating system gives no random numbers.
pub fn make_root(now: Timestamp) -> Result<MadeRoot, PkiError> {
    let not_after = now.plus_secs(ROOT_SECS);
    // A name of its own for each: who verifies finds the right one by it.
    let name = format!("ftagent authority {}", &Uuid::new_v4().simple().to_string()[..12]);
    let (mut params, _) = params(&name, now.plus_secs(-BACKDATE_SECS), not_after)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(MadeRoot { name, certificate: certificate.der().clone(), key: key.serialize_der(), not_after })
}

impl Signer {
    /// The root with this certificate and key (PKCS #8, DER).
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Self, PkiError> {
        let key = KeyPair::try_from(key)?;
        Ok(Self(Issuer::from_ca_cert_der(&CertificateDer::from(certificate), key)?))
    }

    /// Signs a node's request: of it only the public key is used, the rest is the node's identity as we know it.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn node(&self, key: &PublicKey, node: Uuid, now: Timestamp, lifetime: i64) -> Result<Made, PkiError> {
        let (not_before, not_after) = (now.plus_secs(-BACKDATE_SECS), now.plus_secs(lifetime));
        let (mut params, serial) = params(&node.to_string(), not_before, not_after)?;
        params.subject_alt_names = vec![SanType::URI(format!("urn:uuid:{node}").try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key.0, &self.0)?;
        Ok(Made { certificate: certificate.der().clone(), serial, not_before, not_after })
    }

    /// A new key and a certificate for a server that is reached by these names and addresses.
    ///
    /// # Errors
    /// A name that no certificate can have.
    pub fn server(&self, names: &[String], now: Timestamp) -> Result<(Made, PrivateKeyDer<'static>), PkiError> {
        let (not_before, not_after) = (now.plus_secs(-BACKDATE_SECS), now.plus_secs(SERVER_SECS));
        let (mut params, serial) = params("ftagent control plane", not_before, not_after)?;
        params.subject_alt_names = names.iter().map(|name| alternative(name)).collect::<Result<_, _>>()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((Made { certificate: certificate.der().clone(), serial, not_before, not_after }, key))
    }
}

fn alternative(name: &str) -> Result<SanType, PkiError> {
    if let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    // As rustls reads it at the other end.
    let wrong = || PkiError::Name(name.to_owned());
    rustls::pki_types::DnsName::try_from(name).map_err(|_| wrong())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| wrong())?))
}

/// A public key whose private half the caller has.
pub struct PublicKey(rcgen::PublicKey);

impl PublicKey {
    /// Of a request.
    ///
    /// # Errors
    /// It is no request, is not signed with its own key, or has a key of a kind that TLS here does not take.
    pub fn of(request: &CertificateRequest) -> Result<Self, Problem> {
        let wrong = |why: String| Problem::field("csr", why);
        if request.csr.len() > CSR_BYTES {
            return Err(wrong(format!("must be at most {CSR_BYTES} bytes")));
        }
        let csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|e| wrong(format!("must be a PKCS #10 request in PEM, signed with its own key: {e}")))?;
        let taken = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !taken.contains(&csr.public_key.algorithm()) {
            return Err(wrong("must have an ECDSA key on P-256 or P-384, or an Ed25519 key".to_owned()));
        }
        Ok(Self(csr.public_key))
    }

    /// Its bytes, as in a certificate.
    pub fn bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::WebPkiClientVerifier;
    use rustls::server::danger::ClientCertVerifier;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn request(key: &KeyPair) -> CertificateRequest {
        let csr = CertificateParams::default().serialize_request(key).expect("a request");
        CertificateRequest { csr: csr.pem().expect("text") }
    }

    fn root() -> (MadeRoot, Signer) {
        let root = make_root(Timestamp::from_secs(NOW)).expect("a root");
        let signer = Signer::new(&root.certificate, &root.key).expect("its own key");
        (root, signer)
    }

    fn verifier(root: &MadeRoot) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(root.certificate.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("a verifier")
    }

    fn unix(secs: i64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(secs).expect("after 1970")))
    }

    #[test]
    fn a_certificate_of_a_node_verifies_against_its_root_while_it_holds_and_no_other() {
        let (root, signer) = root();
        let (other, _) = self::root();
        let key = PublicKey::of(&request(&KeyPair::generate().expect("a key"))).expect("a request");
        let made = signer.node(&key, Uuid::from_u128(1), Timestamp::from_secs(NOW), 3_600).expect("made");
        let verify = |root, at| verifier(root).verify_client_cert(&made.certificate, &[], unix(at)).is_ok();
        // A node's clock, and with it the control plane's, may be wrong by hours.
        assert!(verify(&root, NOW) && verify(&root, NOW - 80_000) && verify(&root, NOW + 3_599));
        assert!(!verify(&root, NOW + 3_601) && !verify(&root, NOW - BACKDATE_SECS - 1) && !verify(&other, NOW));
        assert_eq!(made.serial.len(), 32);
        assert_eq!(CertificateDer::from_pem_slice(pem(&made.certificate).as_bytes()).expect("PEM"), made.certificate);
    }

    #[test]
    fn a_server_is_known_by_its_names_and_addresses() {
        let (root, signer) = root();
        let names = ["cp.example".to_owned(), "192.0.2.7".to_owned(), "2001:db8::7".to_owned()];
        let (made, _) = signer.server(&names, Timestamp::from_secs(NOW)).expect("made");
        let mut roots = RootCertStore::empty();
        roots.add(root.certificate).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let verifier = verifier.expect("a verifier");
        use rustls::client::danger::ServerCertVerifier as _;
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            verifier.verify_server_cert(&made.certificate, &[], &name, &[], unix(NOW)).is_ok()
        };
        assert!(names.iter().all(|name| verify(name)));
        assert!(!verify("other.example") && !verify("192.0.2.8"));
        for wrong in ["", "a b", "*", "http://x"] {
            assert!(matches!(signer.server(&[wrong.to_owned()], Timestamp::from_secs(NOW)), Err(PkiError::Name(_))));
        }
    }

    #[test]
    fn what_is_no_request_of_its_own_key_is_refused() {
        let good = request(&KeyPair::generate().expect("a key")).csr;
        let mut lines: Vec<_> = good.lines().map(str::to_owned).collect();
        // A bit of the signature, which ends the last line but one.
        let last = lines.len() - 2;
        let changed = if lines[last].starts_with('A') { "B" } else { "A" };
        lines[last].replace_range(..1, changed);
        for csr in
            ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----", &lines.join("\n")]
        {
            let refused = PublicKey::of(&CertificateRequest { csr: csr.to_owned() });
            assert!(refused.is_err_and(|problem| problem.to_string().starts_with("csr: ")), "{csr}");
        }
        let long = CertificateRequest { csr: "x".repeat(9_000) };
        assert!(PublicKey::of(&long).is_err());
    }
}
