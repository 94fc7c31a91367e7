//! How S3 says no.

use http::StatusCode;

use crate::wire::Response;
use crate::wire::s3::xml;
use crate::world::bucket::BucketError;

/// A status and S3's own code for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    code: &'static str,
}

impl Refusal {
    pub(super) const ACCESS_DENIED: Self = Self::new(StatusCode::FORBIDDEN, "AccessDenied");
    pub(super) const BAD_DIGEST: Self = Self::new(StatusCode::BAD_REQUEST, "BadDigest");
    pub(super) const INTERNAL: Self = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
    pub(super) const INVALID_ARGUMENT: Self = Self::new(StatusCode::BAD_REQUEST, "InvalidArgument");
    pub(super) const INVALID_RANGE: Self =
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
    pub(super) const MALFORMED_XML: Self = Self::new(StatusCode::BAD_REQUEST, "MalformedXML");
    pub(super) const NO_SUCH_BUCKET: Self = Self::new(StatusCode::NOT_FOUND, "NoSuchBucket");
    pub(super) const NO_SUCH_LIFECYCLE: Self =
        Self::new(StatusCode::NOT_FOUND, "NoSuchLifecycleConfiguration");
    pub(super) const NOT_IMPLEMENTED: Self =
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented");
    pub(super) const NOT_MODIFIED: Self = Self::new(StatusCode::NOT_MODIFIED, "NotModified");
    pub(super) const PRECONDITION_FAILED: Self =
        Self::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");

    const fn new(status: StatusCode, code: &'static str) -> Self {
        Self { status, code }
    }

    pub(super) fn response(self, key: &str) -> Response {
        let mut response = xml::response(&xml::error(self.code, key));
        *response.status_mut() = self.status;
        response
    }
}

impl From<BucketError> for Refusal {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::NoSuchKey => Self::new(StatusCode::NOT_FOUND, "NoSuchKey"),
            BucketError::NoSuchUpload => Self::new(StatusCode::NOT_FOUND, "NoSuchUpload"),
            BucketError::PreconditionFailed => Self::PRECONDITION_FAILED,
            BucketError::InvalidPart => Self::new(StatusCode::BAD_REQUEST, "InvalidPart"),
            BucketError::InvalidPartOrder => Self::new(StatusCode::BAD_REQUEST, "InvalidPartOrder"),
            BucketError::EntityTooSmall => Self::new(StatusCode::BAD_REQUEST, "EntityTooSmall"),
        }
    }
}
