//! Whose file is believed: one that only certain users can have written.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Why a file is not used.
#[derive(Debug)]
pub enum Refusal {
    /// The system does not give it.
    System(io::Error),
    /// The rest of a sentence that begins with the file.
    Unusable(String),
}

impl From<io::Error> for Refusal {
    fn from(cause: io::Error) -> Self {
        Self::System(cause)
    }
}

impl Refusal {
    /// A refusal for this reason.
    pub fn unusable(why: &str) -> Self {
        Self::Unusable(why.to_owned())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(cause) => cause.fmt(formatter),
            Self::Unusable(why) => formatter.write_str(why),
        }
    }
}

/// Opens a file that only these users can have written.
pub fn open_own(path: &Path, owners: &[u32]) -> Result<File, Refusal> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK) // a pipe must not wait for its writer
        .open(path)?;
    let status = file.metadata()?;
    if !status.is_file() {
        Err(Refusal::unusable("is not used: it is no file"))
    } else if !owners.contains(&status.uid()) {
        Err(Refusal::unusable("is not used: it belongs to another user"))
    } else if status.mode() & 0o022 != 0 {
        Err(Refusal::unusable(
            "is not used: others can write to it; chmod go-w would mend that",
        ))
    } else {
        Ok(file)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_others_can_write_is_not_opened() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let me = rustix::process::geteuid().as_raw();
        assert!(open_own(file.path(), &[me]).is_ok());
        assert!(
            matches!(open_own(file.path(), &[me + 1]), Err(Refusal::Unusable(why)) if why.contains("another user"))
        );
        file.as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o620))
            .unwrap();
        assert!(matches!(open_own(file.path(), &[me]), Err(Refusal::Unusable(why)) if why.contains("chmod")));
        assert!(
            matches!(open_own(Path::new("/dev/null"), &[me, 0]), Err(Refusal::Unusable(why)) if why.contains("no file"))
        );
    }
}
