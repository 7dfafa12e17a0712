//! The one error type of the core. It never knows Python: `lib.rs` turns it into an exception.

use std::fmt;

/// What failed, where and why, as one sentence that a user can act on.
#[derive(Debug)]
pub struct Error {
    message: String,
}

/// The result of everything in the core that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
