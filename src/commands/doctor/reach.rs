//! Asks each outside system whether it is there: at start, and for `lifeboat doctor`.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::types::QueueAttributeName;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::error::Class;
use crate::error::Classify;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an outside system is not there for us.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// It did not answer.
    #[error("{what} was not reached")]
    Away {
        /// Which system.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("{what} was not reached within {} s", PATIENCE.as_secs())]
    Late {
        /// Which system.
        what: String,
    },
    /// It answered, and refuses us.
    #[error("{what} refuses us")]
    Refused {
        /// Which system.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Classify for ReachError {
    fn class(&self) -> Class {
        // A queue, a bucket or a role may still be made: a service waits for that too.
        Class::Transient
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::Late { .. } => "late",
            Self::Refused { .. } => "refused",
        }
    }
}

/// The API server's version: major and minor.
pub async fn api_server(client: &kube::Client) -> Result<(u32, u32), ReachError> {
    let what = || "the API server".to_owned();
    match tokio::time::timeout(PATIENCE, client.apiserver_version()).await {
        Err(_elapsed) => Err(ReachError::Late { what: what() }),
        Ok(Err(error @ kube::Error::Api(_))) => {
            Err(ReachError::Refused { what: what(), source: error.into() })
        }
        Ok(Err(error)) => Err(ReachError::Away { what: what(), source: error.into() }),
        // Some servers write `33+`.
        Ok(Ok(info)) => Ok((leading_number(&info.major), leading_number(&info.minor))),
    }
}

/// The queue's attributes.
pub async fn queue(
    client: &aws_sdk_sqs::Client,
    url: &str,
) -> Result<BTreeMap<String, String>, ReachError> {
    let what = || format!("queue `{url}`");
    let request = client.get_queue_attributes().queue_url(url);
    let request = request.attribute_names(QueueAttributeName::All);
    match tokio::time::timeout(PATIENCE, request.send()).await {
        Err(_elapsed) => Err(ReachError::Late { what: what() }),
        Ok(Err(error @ SdkError::ServiceError(_))) => {
            Err(ReachError::Refused { what: what(), source: error.into() })
        }
        Ok(Err(error)) => Err(ReachError::Away { what: what(), source: error.into() }),
        Ok(Ok(answer)) => {
            let attributes = answer.attributes.unwrap_or_default();
            Ok(attributes
                .into_iter()
                .map(|(name, value)| (name.as_str().to_owned(), value))
                .collect())
        }
    }
}

/// Reads `path` from the bucket: `None` where there is no such object, which is an answer too.
pub async fn bucket(
    store: &dyn ObjectStore,
    name: &str,
    path: &Path,
) -> Result<Option<Bytes>, ReachError> {
    let what = || format!("bucket `{name}`");
    let read = async { store.get(path).await?.bytes().await };
    match tokio::time::timeout(PATIENCE, read).await {
        Err(_elapsed) => Err(ReachError::Late { what: what() }),
        Ok(Ok(content)) => Ok(Some(content)),
        Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
        Ok(Err(
            error @ (object_store::Error::PermissionDenied { .. }
            | object_store::Error::Unauthenticated { .. }),
        )) => Err(ReachError::Refused { what: what(), source: error.into() }),
        Ok(Err(error)) => Err(ReachError::Away { what: what(), source: error.into() }),
    }
}

fn leading_number(text: &str) -> u32 {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().unwrap_or_default()
}
