//! The one root of a mesh: its key is kept offline under a passphrase, and signs a cluster's trust
//! domain into that cluster's intermediate.

use crate::issue::{self, KeyPem};
use crate::{pem, svid};
use mesh::name::TrustDomain;
use pkcs8::der::Decode as _;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, PrivateKeyInfo};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;

/// How long a root lives: ten years.
pub const ROOT_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a cluster's intermediate lives: one year (decision 15).
pub const INTERMEDIATE_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Shortest passphrase, characters.
pub const PASSPHRASE_MIN: usize = 8;
/// The root's certificate in its folder.
pub const CERTIFICATE_FILE: &str = "root-cert.pem";
/// The root's encrypted key in its folder.
pub const KEY_FILE: &str = "root-key.pem";

const KEY_LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// A root: its certificate, and its key under a passphrase (PKCS#8, scrypt and AES-256-CBC, which
/// `openssl pkey` reads).
#[derive(Debug, Clone)]
pub struct RootFiles {
    pub certificate_pem: String,
    pub encrypted_key_pem: String,
}

/// The four keys of Secret `cacerts`, as Istio names them.
#[derive(Debug, Clone)]
pub struct Cacerts {
    /// `ca-cert.pem`: the intermediate.
    pub ca_cert: String,
    /// `ca-key.pem`
    pub ca_key: KeyPem,
    /// `root-cert.pem`
    pub root_cert: String,
    /// `cert-chain.pem`: the intermediate, then the root.
    pub cert_chain: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error(
        "ISM5301 the passphrase has {0} characters, a root's key needs at least {PASSPHRASE_MIN}. Fix: choose a longer one"
    )]
    Passphrase(usize),
    #[error(
        "ISM5302 the root's key cannot be decrypted. Fix: type the passphrase of this root, and check that {KEY_FILE} is the file `isthmus trust init` wrote"
    )]
    Locked,
    #[error(
        "ISM5303 the root certificate cannot be used: {0}. Fix: give {CERTIFICATE_FILE} and {KEY_FILE} of the same `isthmus trust init`"
    )]
    Certificate(String),
    #[error(
        "ISM5304 {folder} lies in the git work tree {tree}: a root's key must never be committed. Fix: choose a folder outside of it"
    )]
    GitWorkTree { folder: PathBuf, tree: PathBuf },
    #[error(
        "ISM5305 {0} exists: a root is never overwritten, all clusters trust it. Fix: choose another folder, or move that file away"
    )]
    Exists(PathBuf),
    #[error("ISM5306 {path} may be read by others (mode {mode:04o}). Fix: chmod 600 {path}")]
    Mode { path: PathBuf, mode: u32 },
    #[error("ISM5307 {path}: {source}. Fix: choose a folder this user may write")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "ISM5307 {path} cannot be read: {source}. Fix: name the folder that `isthmus trust init` filled, as a user who may read it"
    )]
    Unread { path: PathBuf, source: io::Error },
    #[error(
        "ISM5308 the name of the mesh {0:?} cannot stand in a certificate. Fix: use 1 to 64 printable ASCII characters"
    )]
    Name(String),
}

/// A new root for a mesh called `name`.
pub fn create(name: &str, passphrase: &str) -> Result<RootFiles, RootError> {
    if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Err(RootError::Name(name.chars().take(128).collect()));
    }
    let length = passphrase.chars().count();
    if length < PASSPHRASE_MIN {
        return Err(RootError::Passphrase(length));
    }
    let key = issue::new_key();
    let mut params = authority(name, "root", SystemTime::now(), ROOT_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let certificate =
        params.self_signed(&key).map_err(|e| RootError::Certificate(e.to_string()))?;
    Ok(RootFiles {
        certificate_pem: pem::certificate(certificate.der()),
        encrypted_key_pem: encrypt(&key, passphrase)?,
    })
}

/// The Secret of one cluster: an intermediate that may issue for `domain` only. It does not
/// outlive the root.
pub fn issue_intermediate(
    root_cert: &str,
    encrypted_key: &str,
    passphrase: &str,
    domain: &TrustDomain,
    validity: Duration,
) -> Result<Cacerts, RootError> {
    let wrong = RootError::Certificate;
    let root = pem::certificates(root_cert).map_err(wrong)?.swap_remove(0);
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&root).map_err(|e| wrong(e.to_string()))?;
    if !parsed.is_ca() {
        return Err(wrong("it is not an authority's".into()));
    }
    let now = SystemTime::now();
    let (_, end) =
        svid::validity(&root).ok_or_else(|| wrong("its validity is not readable".into()))?;
    let left = end.duration_since(now).map_err(|_| wrong("it has expired".into()))?;
    let root_key = decrypt(encrypted_key, passphrase)?;
    if parsed.public_key().subject_public_key.data.as_ref() != root_key.public_key_raw() {
        return Err(wrong("the key is another root's".into()));
    }
    let signer = rcgen::Issuer::from_ca_cert_der(&root, root_key)
        .map_err(|e| RootError::Certificate(e.to_string()))?;
    let key = issue::new_key();
    let mut params = authority(domain.as_str(), "intermediate", now, validity.min(left));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    // The tie of an authority to its cluster: the verifier holds every leaf against this name.
    params.subject_alt_names = vec![issue::uri(&format!("spiffe://{domain}"))];
    params.use_authority_key_identifier_extension = true;
    let certificate =
        params.signed_by(&key, &signer).map_err(|e| RootError::Certificate(e.to_string()))?;
    let (ca_cert, root_cert) = (pem::certificate(certificate.der()), pem::certificate(&root));
    let ca_key = KeyPem::new(key.serialize_pem());
    let cert_chain = format!("{ca_cert}{root_cert}");
    Ok(Cacerts { ca_cert, ca_key, root_cert, cert_chain })
}

/// Writes both files into `folder` (made with mode 0700 if absent), the key with mode 0600; never
/// over another root, never inside a git work tree.
pub fn write_files(folder: &Path, files: &RootFiles) -> Result<(PathBuf, PathBuf), RootError> {
    if let Some(tree) = git_work_tree(folder)? {
        return Err(RootError::GitWorkTree { folder: folder.to_owned(), tree });
    }
    let (certificate, key) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
    for path in [&certificate, &key] {
        if path.symlink_metadata().is_ok() {
            return Err(RootError::Exists(path.clone()));
        }
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| RootError::File { path: folder.to_owned(), source })?;
    write_new(&key, &files.encrypted_key_pem, 0o600)?;
    write_new(&certificate, &files.certificate_pem, 0o644)?;
    Ok((certificate, key))
}

/// Reads what [`write_files`] wrote; a key that others may read is refused.
pub fn read_files(folder: &Path) -> Result<RootFiles, RootError> {
    let key = folder.join(KEY_FILE);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RootError::Unread { path, source }
    };
    let mode = std::fs::metadata(&key).map_err(failed(&key))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(RootError::Mode { path: key, mode });
    }
    let certificate = folder.join(CERTIFICATE_FILE);
    Ok(RootFiles {
        certificate_pem: std::fs::read_to_string(&certificate).map_err(failed(&certificate))?,
        encrypted_key_pem: std::fs::read_to_string(&key).map_err(failed(&key))?,
    })
}

fn authority(name: &str, what: &str, now: SystemTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    // Two authorities never share a subject: a peer of another root is then refused for its root,
    // and not for a signature that seems false.
    let tag: u32 = rand::random();
    params.distinguished_name.push(DnType::CommonName, format!("Isthmus {what} {tag:08x}"));
    params.not_before = OffsetDateTime::from(now - issue::BACKDATE);
    params.not_after = OffsetDateTime::from(now + validity);
    params.serial_number = Some(issue::serial());
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn encrypt(key: &KeyPair, passphrase: &str) -> Result<String, RootError> {
    let (salt, iv): ([u8; 16], [u8; 16]) = (rand::random(), rand::random());
    let parameters = pbes2::Parameters::scrypt_aes256cbc(scrypt::Params::recommended(), &salt, &iv)
        .expect("16 bytes are a salt");
    let plain = PrivateKeyInfo::from_der(key.serialized_der()).expect("a key we made is PKCS#8");
    let encrypted = plain
        .encrypt_with_params(parameters, passphrase)
        .expect("recommended parameters encrypt a short text");
    Ok(pem::encode(KEY_LABEL, encrypted.as_bytes()))
}

fn decrypt(encrypted: &str, passphrase: &str) -> Result<KeyPair, RootError> {
    if encrypted.len() > pem::TEXT_MAX {
        return Err(RootError::Locked);
    }
    let (label, der) =
        pkcs8::der::pem::decode_vec(encrypted.as_bytes()).map_err(|_| RootError::Locked)?;
    if label != KEY_LABEL {
        return Err(RootError::Locked);
    }
    let parsed = EncryptedPrivateKeyInfo::from_der(&der).map_err(|_| RootError::Locked)?;
    let plain = parsed.decrypt(passphrase).map_err(|_| RootError::Locked)?;
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(plain.as_bytes())).map_err(|_| RootError::Locked)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), RootError> {
    let failed = |source| RootError::File { path: path.to_owned(), source };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// The git work tree that `folder`, which need not exist yet, lies in.
fn git_work_tree(folder: &Path) -> Result<Option<PathBuf>, RootError> {
    let failed = |source| RootError::File { path: folder.to_owned(), source };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    // Symbolic links are followed from the nearest part that exists, so none hides a work tree.
    let existing = absolute
        .ancestors()
        .find_map(|part| part.canonicalize().ok())
        .unwrap_or_else(|| PathBuf::from("/"));
    let tree = existing.ancestors().find(|part| part.join(".git").symlink_metadata().is_ok());
    Ok(tree.map(Path::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSPHRASE: &str = "correct horse battery";

    #[test]
    fn only_the_passphrase_opens_the_key() {
        let files = create("Example", PASSPHRASE).unwrap();
        assert!(files.encrypted_key_pem.contains("BEGIN ENCRYPTED PRIVATE KEY"));
        let west: TrustDomain = "west.mesh".parse().unwrap();
        let issue = |cert: &str, key: &str, passphrase: &str| {
            issue_intermediate(cert, key, passphrase, &west, INTERMEDIATE_VALIDITY)
        };
        let wrong = issue(&files.certificate_pem, &files.encrypted_key_pem, "wrong passphrase");
        assert!(matches!(wrong, Err(RootError::Locked)));
        let other = create("Example", PASSPHRASE).unwrap();
        let mixed = issue(&other.certificate_pem, &files.encrypted_key_pem, PASSPHRASE);
        assert!(matches!(mixed, Err(RootError::Certificate(_))));
        let good = issue(&files.certificate_pem, &files.encrypted_key_pem, PASSPHRASE).unwrap();
        assert_eq!(good.root_cert, files.certificate_pem);
        assert!(!format!("{good:?}").contains("PRIVATE"));
        assert!(matches!(create("Example", "short"), Err(RootError::Passphrase(5))));
        assert!(matches!(create("new\nline", PASSPHRASE), Err(RootError::Name(_))));
    }

    #[test]
    fn an_intermediate_says_its_domain_and_no_more() {
        let files = create("Example", PASSPHRASE).unwrap();
        let west: TrustDomain = "west.mesh".parse().unwrap();
        let century = Duration::from_secs(100 * 365 * 24 * 3600);
        let (cert, key) = (&files.certificate_pem, &files.encrypted_key_pem);
        let cacerts = issue_intermediate(cert, key, PASSPHRASE, &west, century).unwrap();
        let der = pem::certificates(&cacerts.ca_cert).unwrap().swap_remove(0);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
        let constraints = parsed.basic_constraints().unwrap().unwrap().value;
        assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
        assert!(parsed.name_constraints().unwrap().is_none());
        assert_eq!(crate::verify::issues_for(&der).unwrap(), west);
        let root = pem::certificates(cert).unwrap().swap_remove(0);
        assert_eq!(svid::validity(&der).unwrap().1, svid::validity(&root).unwrap().1);
    }

    #[test]
    fn the_key_is_written_once_for_its_owner_and_outside_git() {
        let files = create("Example", PASSPHRASE).unwrap();
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("new/ca");
        let (_, key) = write_files(&folder, &files).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write_files(&folder, &files), Err(RootError::Exists(_))));
        assert_eq!(read_files(&folder).unwrap().encrypted_key_pem, files.encrypted_key_pem);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(read_files(&folder), Err(RootError::Mode { mode: 0o640, .. })));

        let tree = base.path().join("tree");
        std::fs::create_dir_all(tree.join(".git")).unwrap();
        let inside = write_files(&tree.join("a/b"), &files);
        assert!(matches!(inside, Err(RootError::GitWorkTree { .. })));
        assert!(!tree.join("a").exists());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&tree, &link).unwrap();
        let hidden = write_files(&link.join("ca"), &files);
        assert!(matches!(hidden, Err(RootError::GitWorkTree { .. })));
    }
}
