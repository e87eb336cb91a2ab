//! PEM in and out, with bounds on what is read.

use pkcs8::der::pem::{LineEnding, encode_string};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Longest PEM text that is read, bytes; a bundle of 64 roots has about 60 KiB.
pub(crate) const TEXT_MAX: usize = 256 * 1024;

/// One certificate as PEM.
pub(crate) fn certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    // Base64 of bytes in memory cannot fail but by its length, which TEXT_MAX bounds.
    encode_string(label, LineEnding::LF, der).expect("a short DER has a PEM form")
}

/// All certificates in a text, at least one; the error is the end of a sentence.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("it has {} bytes, at most {TEXT_MAX} are read", text.len()));
    }
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("it is not PEM: {e}"))?;
    if certificates.is_empty() {
        return Err("there is no certificate in it".into());
    }
    Ok(certificates)
}
