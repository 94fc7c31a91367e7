//! The commands people type.

use std::fmt::Debug;
use std::io;

use kube::Api;
use kube::api::ListParams;
use serde::de::DeserializeOwned;

use crate::adapters::cluster::objects::Object;
use crate::adapters::cluster::rows::Row;

pub mod check_config;
pub mod checkpoints;
pub mod cleanup;
pub mod crds;
pub mod doctor;
pub mod pause;
pub mod status;

mod table;

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The API server did not give what was asked for.
    #[error("{what} was not read")]
    Read {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: kube::Error,
    },
    /// The API server does not know our resources.
    #[error(
        "the resource definitions of lifeboat.dev are not installed. \
         `lifeboat crds | kubectl apply -f -` installs them"
    )]
    NoDefinitions,
    /// The API server did not take a change.
    #[error("{what} was not changed")]
    Write {
        /// What was to be changed.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was named does not exist.
    #[error("{what} does not exist")]
    Missing {
        /// What was named.
        what: String,
    },
    /// The bucket did not give what was asked for.
    #[error("bucket `{bucket}` was not read")]
    Bucket {
        /// The bucket.
        bucket: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was asked for would harm something, and was not done.
    #[error("{what}")]
    Refused {
        /// What, and what to do instead.
        what: String,
    },
    /// Standard output is closed.
    #[error("the answer was not written")]
    Output(#[from] io::Error),
}

impl CommandError {
    fn read(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| {
            let unknown = matches!(&source, kube::Error::Api(status) if status.code == 404);
            if unknown { Self::NoDefinitions } else { Self::Read { what, source } }
        }
    }
}

/// Objects on one page of a list.
const PAGE: u32 = 500;

/// Pages of a list that are read at most.
const PAGES: usize = 200;

/// Reads a whole list, page by page.
async fn list<K>(api: &Api<K>, what: &'static str) -> Result<Vec<K>, CommandError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut found = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    for _ in 0..PAGES {
        let list = api.list(&page).await.map_err(CommandError::read(what))?;
        found.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    Ok(found)
}

/// Reads a whole list, and keeps of each object what its row does.
async fn rows<R: Row>(
    api: &Api<Object<R::Kind>>,
    what: &'static str,
) -> Result<Vec<R>, CommandError> {
    Ok(list(api, what).await?.iter().filter_map(R::read).map(|(_, row)| row).collect())
}
