//! Certificates of a control plane of its own: an authority, the API server, and the key that
//! tokens of service accounts are signed with.

use std::path::Path;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;

use super::ControlPlaneError;
use super::layout;

/// The names that the API server is reached by, inside and outside.
const NAMES: &[&str] = &["127.0.0.1", "10.0.0.1", "localhost", "kubernetes", "kubernetes.default"];

/// Writes all of them to `folder`, unless they are there.
pub(super) fn write(folder: &Path) -> Result<(), ControlPlaneError> {
    if folder.join("sa.pub").exists() {
        return Ok(());
    }
    let authority_key = KeyPair::generate()?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "lifeboat-cluster-tests");
    let certificate = authority.self_signed(&authority_key)?;
    let issuer = Issuer::new(authority, authority_key);

    let key = KeyPair::generate()?;
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server = server.signed_by(&key, &issuer)?;

    let accounts = KeyPair::generate()?;
    layout::write(&folder.join("ca.crt"), &certificate.pem())?;
    layout::write(&folder.join("api.crt"), &server.pem())?;
    layout::write(&folder.join("api.key"), &key.serialize_pem())?;
    layout::write(&folder.join("sa.key"), &accounts.serialize_pem())?;
    layout::write(&folder.join("sa.pub"), &accounts.public_key_pem())
}
