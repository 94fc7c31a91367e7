//! Looks after the certificate: one for all replicas, trusted by the API server before it is shown.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::deadline::later;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::admission;
use crate::adapters::cluster::admission::Secret;
use crate::controller::Deps;
use crate::controller::webhook::certificate;
use crate::controller::webhook::certificate::AHEAD;
use crate::controller::webhook::certificate::Certificate;
use crate::controller::webhook::certificate::CertificateError;
use crate::error::Chain;
use crate::error::Class;
use crate::error::Classify;
use crate::metrics;
use crate::telemetry;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// How long API servers may take to hear of an authority.
const SETTLE: Duration = Duration::from_secs(10);
/// What of readiness waits for the first certificate.
const PART: &str = "webhook";

/// The certificate that is shown; none until the first was found.
#[derive(Debug, Default)]
pub struct Shown(Mutex<Option<(Certificate, Arc<CertifiedKey>)>>);

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// The API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

impl Classify for KeepError {
    fn class(&self) -> Class {
        match self {
            Self::Cluster(error) => error.class(),
            Self::Certificate(_) => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Cluster(error) => error.label(),
            Self::Certificate(_) => "certificate",
        }
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.now().as_ref().map(|(_, certified)| certified.clone())
    }
}

impl Shown {
    fn is(&self, certificate: &Certificate) -> bool {
        self.now().as_ref().is_some_and(|(shown, _)| shown == certificate)
    }

    fn is_none(&self) -> bool {
        self.now().is_none()
    }

    /// Shows this certificate from the next connection on.
    pub fn show(&self, certificate: &Certificate) -> Result<(), CertificateError> {
        let certified = certificate.certified()?;
        *self.now() = Some((certificate.clone(), certified));
        Ok(())
    }

    fn now(&self) -> MutexGuard<'_, Option<(Certificate, Arc<CertifiedKey>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the certificate for ever. Not ready until there is one: the API server asks those of
/// our replicas that are.
pub async fn run(deps: &Deps, shown: &Shown) {
    telemetry::not_ready(PART);
    loop {
        match look(deps, shown).await {
            Ok(()) => telemetry::ready(PART),
            // Another replica was first: what it made is there to read.
            Err(KeepError::Cluster(ClusterError::Conflict { .. })) => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => {
                metrics::error("webhook", error.label());
                tracing::warn!(error = %Chain(&error), "certificate of the webhook not looked after");
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(deps: &Deps, shown: &Shown) -> Result<(), KeepError> {
    let namespace = &deps.settings.namespace;
    let secret = admission::secret(&deps.cluster, namespace).await?;
    let certificate = current(deps, &secret).await?;
    if !admission::trusts(&deps.cluster, certificate.authorities()).await? {
        admission::trust(&deps.cluster, certificate.authorities()).await?;
        tracing::info!("the API server trusts the webhook's authority");
    }
    if shown.is(&certificate) {
        return Ok(());
    }
    // The last one is trusted meanwhile, and the new one not yet by each API server.
    if !shown.is_none() {
        tokio::time::sleep(SETTLE).await;
    }
    shown.show(&certificate)?;
    tracing::info!("webhook shows a new certificate");
    Ok(())
}

/// What lies in the Secret, or what is put there in its place.
async fn current(deps: &Deps, secret: &Secret) -> Result<Certificate, KeepError> {
    let namespace = &deps.settings.namespace;
    let (name, now) = (name(namespace), deps.clock.now());
    let last = certificate::read(&secret.data);
    if let Some(last) = last.as_ref().filter(|last| last.is_good(&name, later(now, AHEAD))) {
        return Ok(last.clone());
    }
    let last = last.filter(|last| last.is_good(&name, now));
    let made = certificate::make(&name, last.as_ref(), now)?;
    admission::keep(&deps.cluster, namespace, (secret, &made.parts())).await?;
    tracing::info!(%name, "certificate made");
    Ok(made)
}

/// The name that the API server asks for.
pub fn name(namespace: &str) -> String {
    format!("{}.{namespace}.svc", admission::NAME)
}
