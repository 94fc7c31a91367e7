//! One attempt to save: the folder that its chunks lie in, named by when it began and whose it is.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// Digits of the second at which an attempt began: enough until the year 5138, so that a listing
/// is in order.
const SECOND_DIGITS: usize = 11;
/// The latest second that so many digits can say.
const SECOND_MAX: u64 = 99_999_999_999;
/// Bytes that tell attempts of the same second apart; each is two hex digits.
const TAG_BYTES: usize = 8;

/// One attempt to save the state of a life, as `01796054246-5f0c2ad1b96e7743`.
///
/// No two attempts share a name, so what lies in the folder of one that is over is never written
/// again. The name says when it began, so that its age can be told without anything that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Attempt {
    second: u64,
    tag: [u8; TAG_BYTES],
}

/// A text that names no attempt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no attempt. One is 11 digits, `-`, and 16 hex digits in lower case.")]
pub struct NotAnAttempt {
    /// What stands there, shortened.
    pub text: String,
}

impl Attempt {
    /// The attempt that began at this second since 1970, by whoever these words name.
    ///
    /// The words must tell it from every other attempt of that second: the pod, its life, and the
    /// time since boot.
    pub fn new(second: u64, words: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for word in words {
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
        }
        let mut tag = [0; TAG_BYTES];
        tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_BYTES]);
        Self { second: second.min(SECOND_MAX), tag }
    }

    /// When it began, in seconds since 1970, by the clock of whoever saved.
    pub fn second(&self) -> u64 {
        self.second
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:0width$}-", self.second, width = SECOND_DIGITS)?;
        self.tag.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl FromStr for Attempt {
    type Err = NotAnAttempt;

    fn from_str(text: &str) -> Result<Self, NotAnAttempt> {
        read(text).ok_or_else(|| NotAnAttempt { text: text.chars().take(80).collect() })
    }
}

impl TryFrom<String> for Attempt {
    type Error = NotAnAttempt;

    fn try_from(text: String) -> Result<Self, NotAnAttempt> {
        text.parse()
    }
}

impl From<Attempt> for String {
    fn from(attempt: Attempt) -> Self {
        attempt.to_string()
    }
}

/// Reads a name, of which there is one spelling.
fn read(text: &str) -> Option<Attempt> {
    let (second, tag) = text.split_once('-')?;
    let digits = second.len() == SECOND_DIGITS && second.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || tag.len() != 2 * TAG_BYTES {
        return None;
    }
    let mut bytes = [0; TAG_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(tag.as_bytes().chunks(2)) {
        *byte = pair.iter().try_fold(0, |byte, digit| Some(byte * 16 + hex(*digit)?))?;
    }
    Some(Attempt { second: second.parse().ok()?, tag: bytes })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_named_by_its_second_and_whose_it_is() {
        let attempt = Attempt::new(1_796_054_246, &["uid", "run", "1"]);
        assert_eq!(attempt.to_string(), "01796054246-063426531c2bfbdf");
        assert_eq!(attempt.to_string().parse(), Ok(attempt));
        assert_eq!(attempt.second(), 1_796_054_246);
        assert_ne!(attempt, Attempt::new(1_796_054_246, &["uid", "run", "2"]));
        assert_ne!(attempt, Attempt::new(1_796_054_246, &["uid", "ru", "n1"]));
        assert_eq!(
            Attempt::new(u64::MAX, &[]).to_string().parse(),
            Ok(Attempt::new(u64::MAX, &[]))
        );
    }

    #[test]
    fn what_is_spelled_otherwise_is_no_attempt() {
        for text in [
            "",
            "-",
            "01796054246",
            "1796054246-5f0c2ad1b96e7743",
            "001796054246-5f0c2ad1b96e7743",
            "+1796054246-5f0c2ad1b96e7743",
            "01796054246-5F0c2ad1b96e7743",
            "01796054246-5f0c2ad1b96e774",
            "01796054246-5f0c2ad1b96e77433",
            "01796054246-5f0c2ad1b96e77+3",
            "01796054246/5f0c2ad1b96e7743",
            "../../other-5f0c2ad1b96e7743",
            "01796054246-../../../other12",
            " 1796054246-5f0c2ad1b96e7743",
            "\u{661}1796054246-5f0c2ad1b96e7743",
        ] {
            assert!(text.parse::<Attempt>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn there_is_one_spelling(text in "[0-9a-f-]{0,40}|.*") {
            if let Ok(attempt) = text.parse::<Attempt>() {
                proptest::prop_assert_eq!(attempt.to_string(), text);
            }
        }
    }
}
