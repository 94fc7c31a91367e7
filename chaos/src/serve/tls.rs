//! A certificate for one run, of an authority that nobody knows who is not told.

use std::sync::Arc;

use anyhow::anyhow;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

/// The names of loopback.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

/// What a server on loopback proves who it is with.
#[derive(Clone, Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    authority: CertificateDer<'static>,
    authority_pem: String,
}

impl Identity {
    /// A new authority, and a certificate of it for loopback.
    pub fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "lifeboat-loopback");
        let certificate = authority.self_signed(&key)?;
        let issuer = Issuer::new(authority, key);

        let key = KeyPair::generate()?;
        let mut own = CertificateParams::new(NAMES.map(str::to_owned).to_vec())?;
        own.distinguished_name.push(DnType::CommonName, "loopback");
        own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let own = own.signed_by(&key, &issuer)?;

        let secret = PrivateKeyDer::try_from(key.serialize_der());
        let secret = secret.map_err(|fault| anyhow!("the key is of no known kind: {fault}"))?;
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], secret)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            server: Arc::new(server),
            authority: certificate.der().clone(),
            authority_pem: certificate.pem(),
        })
    }

    /// The authority's certificate, as `SSL_CERT_FILE` names it.
    pub fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// Those whom a client trusts who was told of the authority.
    pub fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone())?;
        Ok(roots)
    }

    /// The server's settings.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server())
    }
}
