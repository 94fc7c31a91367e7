//! Calls a workload on its pod's own address: one request on one connection, no proxy, no redirect,
//! and an answer of a bounded size.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::time::Duration;

use backon::BackoffBuilder;
use backon::ExponentialBuilder;
use bytes::Bytes;
use http::StatusCode;
use http::uri::PathAndQuery;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper_util::rt::TokioIo;
use lifeboat_domain::deadline::Deadline;
use lifeboat_domain::workload::HttpTarget;
use tokio::net::TcpStream;

use crate::clock::Clock;
use crate::error::Class;
use crate::error::Classify;
use crate::retry;

/// Most bytes of an answer.
pub const ANSWER_MAX: usize = 64 << 10;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// Why a workload did not save itself.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens, or the line broke.
    #[error("`{at}` was not reached")]
    Unreached {
        /// Where.
        at: SocketAddr,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time.
    #[error("`{at}` did not answer in time")]
    Late {
        /// Where.
        at: SocketAddr,
    },
    /// It asks to be asked again later.
    #[error("`{at}` answered {status}")]
    Busy {
        /// Where.
        at: SocketAddr,
        /// With this.
        status: StatusCode,
    },
    /// It did not save, or sent us elsewhere, where we do not go.
    #[error(
        "`{at}` answered {status}. Only 2xx says that it is saved; redirects are not followed."
    )]
    Refused {
        /// Where.
        at: SocketAddr,
        /// With this.
        status: StatusCode,
    },
    /// Its answer is too long.
    #[error("`{at}` answered with more than {ANSWER_MAX} bytes")]
    TooLong {
        /// Where.
        at: SocketAddr,
    },
    /// The path is none of a request.
    #[error("`{path}` is not a path that can be called")]
    Path {
        /// The path.
        path: String,
    },
    /// The address is not one of a pod's own.
    #[error("`{address}` is no address of a pod's own")]
    Address {
        /// The address.
        address: IpAddr,
    },
}

impl Classify for CallError {
    fn class(&self) -> Class {
        match self {
            Self::Unreached { .. } | Self::Busy { .. } => Class::Transient,
            Self::Late { .. }
            | Self::Refused { .. }
            | Self::TooLong { .. }
            | Self::Path { .. }
            | Self::Address { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Unreached { .. } => "unreached",
            Self::Late { .. } => "late",
            Self::Busy { .. } => "busy",
            Self::Refused { .. } => "refused",
            Self::TooLong { .. } => "too_long",
            Self::Path { .. } => "path",
            Self::Address { .. } => "address",
        }
    }
}

/// Where a pod is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    at: SocketAddr,
    path: PathAndQuery,
}

impl Address {
    /// A target on a pod's own address; never one that every node or every host has.
    pub fn new(pod: IpAddr, target: &HttpTarget) -> Result<Self, CallError> {
        if !is_own(pod) {
            return Err(CallError::Address { address: pod });
        }
        Self::at(SocketAddr::new(pod, target.port), &target.path)
    }

    /// A path at an address that is known to be the one to call.
    pub fn at(at: SocketAddr, path: &str) -> Result<Self, CallError> {
        let read = path.parse().map_err(|_| CallError::Path { path: path.to_owned() });
        Ok(Self { at, path: read? })
    }

    /// Asks the workload to save itself, until it has or `by` is over.
    ///
    /// One that is not there yet, or says 429 or 503, is asked again.
    pub async fn call(
        &self,
        question: &Bytes,
        by: Deadline,
        clock: &Clock,
    ) -> Result<Bytes, CallError> {
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(250))
            .with_max_delay(Duration::from_secs(2))
            .without_max_times();
        retry::until(by, pauses.build(), clock, async || {
            let left = by.left(clock.now());
            match tokio::time::timeout(left, self.call_once(question)).await {
                Ok(answer) => answer,
                Err(_) => Err(CallError::Late { at: self.at }),
            }
        })
        .await
    }

    async fn call_once(&self, question: &Bytes) -> Result<Bytes, CallError> {
        let at = self.at;
        let late = |_| CallError::Unreached { at, source: "no connection in time".into() };
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(at)).await.map_err(late)?;
        let stream = stream.map_err(|source| self.unreached(source))?;
        let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, line) = made.map_err(|source| self.unreached(source))?;
        let answer = async {
            let sent = sender.send_request(self.request(question)).await;
            self.read(sent.map_err(|source| self.unreached(source))?).await
        };
        // The line is driven here, so that nothing of it outlives the call.
        tokio::select! {
            biased;
            answer = answer => answer,
            Err(source) = line => Err(self.unreached(source)),
        }
    }

    fn request(&self, question: &Bytes) -> http::Request<Full<Bytes>> {
        http::Request::post(http::Uri::from(self.path.clone()))
            .header(http::header::HOST, self.at.to_string())
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(question.clone()))
            .expect("an address with a port is a header's value")
    }

    async fn read(
        &self,
        answer: http::Response<hyper::body::Incoming>,
    ) -> Result<Bytes, CallError> {
        let (at, status) = (self.at, answer.status());
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                return Err(CallError::Busy { at, status });
            }
            status if !status.is_success() => return Err(CallError::Refused { at, status }),
            _ => (),
        }
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|source| {
            if source.is::<http_body_util::LengthLimitError>() {
                CallError::TooLong { at }
            } else {
                CallError::Unreached { at, source }
            }
        })?;
        Ok(body.to_bytes())
    }

    fn unreached(&self, source: impl std::error::Error + Send + Sync + 'static) -> CallError {
        CallError::Unreached { at: self.at, source: Box::new(source) }
    }
}

/// Whether an address can be one pod's own: neither this machine's nor the metadata service's.
fn is_own(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast())
        }
        // fd00:ec2::/32 is EC2's: metadata, time and names.
        IpAddr::V6(address) => {
            let ec2 = address.segments()[..2] == [0xfd00, 0x0ec2];
            !(address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || ec2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_of_a_pods_own_is_called() {
        for address in ["10.0.3.7", "192.168.1.1", "100.64.0.9", "2600:1f18::7", "fd12::1"] {
            assert!(is_own(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
        ] {
            assert!(!is_own(address.parse().unwrap()), "{address}");
        }
    }
}
