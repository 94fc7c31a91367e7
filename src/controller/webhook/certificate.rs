//! The webhook's certificate: made anew before it runs out, with an authority that signs nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lifeboat_domain::deadline::earlier;
use lifeboat_domain::deadline::later;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;

/// How long a certificate is good for.
pub const LIFE: Duration = Duration::from_hours(90 * 24);
/// How long before its end the next is made.
pub const AHEAD: Duration = Duration::from_hours(30 * 24);
/// How far in the past it begins: the API server's clock may be behind.
const BEFORE: Duration = Duration::from_hours(24);

/// Names of the parts in the Secret, as `kubernetes.io/tls` has them.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITIES: &str = "ca.crt";

/// A certificate with its key, and the authorities that the API server is to trust, all in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    chain: Vec<u8>,
    key: Vec<u8>,
    authorities: Vec<u8>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It was not made.
    #[error("the certificate of the webhook was not made")]
    Make(#[from] rcgen::Error),
    /// What lies in the Secret is none.
    #[error("what lies in the Secret is no certificate")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// Certificate and key do not belong together, or the name is none.
    #[error("the certificate is not to be used")]
    Unusable(#[from] rustls::Error),
}

impl fmt::Debug for Certificate {
    /// The key is for no log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = String::from_utf8_lossy(&self.chain);
        formatter.debug_struct("Certificate").field("chain", &chain).finish_non_exhaustive()
    }
}

/// Makes a certificate for `name`, with an authority whose key nobody keeps.
///
/// The authority of `last` stays trusted beside the new one, for replicas that still show its
/// certificate.
pub fn make(
    name: &str,
    last: Option<&Certificate>,
    now: Timestamp,
) -> Result<Certificate, CertificateError> {
    let (from, until) = (date(earlier(now, BEFORE)), date(later(now, LIFE)));
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Each its own: clients find the authority of a certificate by its name.
    let called = format!("{name} {}", now.as_second());
    authority.distinguished_name.push(DnType::CommonName, called);
    (authority.not_before, authority.not_after) = (from, until);
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();

    let key = KeyPair::generate()?;
    let mut own = CertificateParams::new(vec![name.to_owned()])?;
    own.distinguished_name.push(DnType::CommonName, name);
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    (own.not_before, own.not_after) = (from, until);
    let chain = own.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
    let trusted = last.map(Certificate::newest_authority).unwrap_or_default();
    Ok(Certificate {
        chain: chain.into_bytes(),
        key: key.serialize_pem().into_bytes(),
        authorities: (authority_pem + &trusted).into_bytes(),
    })
}

/// Reads a certificate out of the Secret; none if a part is missing.
pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Option<Certificate> {
    let part = |name: &str| data.get(name).cloned();
    Some(Certificate { chain: part(CHAIN)?, key: part(KEY)?, authorities: part(AUTHORITIES)? })
}

impl Certificate {
    /// As the Secret holds it.
    pub fn parts(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let parts = [(CHAIN, &self.chain), (KEY, &self.key), (AUTHORITIES, &self.authorities)];
        parts.into_iter().map(|(name, part)| (name, part.clone())).collect()
    }

    /// What the API server is to trust.
    pub fn authorities(&self) -> &[u8] {
        &self.authorities
    }

    /// Whether who trusts its authorities accepts it for `name` at that time.
    pub fn is_good(&self, name: &str, at: Timestamp) -> bool {
        self.judge(name, at).is_ok() && self.certified().is_ok()
    }

    /// For a server to show; refused if the key is another's.
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, CertificateError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.chain).collect();
        let key = PrivateKeyDer::from_pem_slice(&self.key)?;
        Ok(Arc::new(CertifiedKey::from_der(chain?, key, &ring::default_provider())?))
    }

    fn judge(&self, name: &str, at: Timestamp) -> Result<(), CertificateError> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&self.authorities) {
            roots.add(authority?)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier =
            verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        let shown = CertificateDer::from_pem_slice(&self.chain)?;
        let name = ServerName::try_from(name)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let since_epoch = u64::try_from(at.as_second()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(since_epoch));
        verifier.verify_server_cert(&shown, &[], &name, &[], at)?;
        Ok(())
    }

    /// The first of its authorities, which signed it.
    fn newest_authority(&self) -> String {
        const END: &str = "-----END CERTIFICATE-----";
        let all = String::from_utf8_lossy(&self.authorities);
        all.split_once(END).map(|(first, _)| format!("{first}{END}\n")).unwrap_or_default()
    }
}

/// The day of a time. Certificates here begin and end at midnight.
fn date(at: Timestamp) -> time::OffsetDateTime {
    let date = at.to_zoned(TimeZone::UTC).date();
    let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
    rcgen::date_time_ymd(date.year().into(), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "lifeboat-webhook.lifeboat-system.svc";

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn days(count: u64) -> Duration {
        Duration::from_hours(24 * count)
    }

    #[test]
    fn a_certificate_is_good_for_its_name_and_its_time() {
        let made = make(NAME, None, now()).unwrap();
        for (name, at, expected) in [
            (NAME, now(), true),
            (NAME, earlier(now(), Duration::from_hours(23)), true),
            (NAME, earlier(now(), days(3)), false),
            (NAME, later(now(), days(89)), true),
            (NAME, later(now(), days(91)), false),
            ("lifeboat-webhook.elsewhere.svc", now(), false),
        ] {
            assert_eq!(made.is_good(name, at), expected, "{name} at {at}");
        }
    }

    #[test]
    fn it_is_read_as_it_was_kept_and_what_is_torn_or_mixed_is_not_good() {
        let made = make(NAME, None, now()).unwrap();
        let other = make(NAME, None, now()).unwrap();
        let owned = |certificate: &Certificate| -> BTreeMap<String, Vec<u8>> {
            let parts = certificate.parts().into_iter();
            parts.map(|(name, part)| (name.to_owned(), part)).collect()
        };
        assert_eq!(read(&owned(&made)), Some(made.clone()));
        let mut missing = owned(&made);
        missing.remove(KEY);
        assert_eq!(read(&missing), None);
        for part in [KEY, CHAIN, AUTHORITIES] {
            let mut mixed = owned(&made);
            mixed.insert(part.to_owned(), owned(&other)[part].clone());
            assert!(!read(&mixed).unwrap().is_good(NAME, now()), "another's {part}");
            mixed.insert(part.to_owned(), b"-----BEGIN".to_vec());
            assert!(!read(&mixed).unwrap().is_good(NAME, now()), "a torn {part}");
        }
    }

    #[test]
    fn the_last_authority_stays_trusted_and_the_one_before_does_not() {
        let first = make(NAME, None, now()).unwrap();
        let second = make(NAME, Some(&first), now()).unwrap();
        let third = make(NAME, Some(&second), now()).unwrap();
        let shown_to = |shown: &Certificate, trusting: &Certificate| {
            let authorities = trusting.authorities.clone();
            Certificate { authorities, ..shown.clone() }.is_good(NAME, now())
        };
        assert!(shown_to(&first, &second) && shown_to(&second, &second));
        assert!(!shown_to(&second, &first) && !shown_to(&first, &third));
    }

    #[test]
    fn the_key_is_not_shown_in_logs() {
        let made = make(NAME, None, now()).unwrap();
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }
}
