//! The profile: what the ranks of a job asked, kept by the root for the forecast of the next run.
//!
//! ```text
//! mpiimport profile 1                     the format, and lines that say whose profile this is
//! program /home/me/solve.py
//! ...
//!                                         an empty line
//! 0<TAB>module<TAB>numpy<TAB>/opt/lib     runs since it was last asked, and the question
//! ```

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// A question that so many runs did not ask is forgotten.
const RUNS: u32 = 8;
/// A profile that was not used for so long is removed, and so is the rest of a write that was killed.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 3600);

/// Questions, as lines of bytes.
pub type Questions = BTreeSet<Vec<u8>>;

static NOTES: Mutex<Option<Questions>> = Mutex::new(None);

/// From now on, this process takes note of questions.
pub fn take_notes() {
    *NOTES.lock().unwrap_or_else(PoisonError::into_inner) = Some(Questions::new());
}

/// Takes note of a question, if this process does so at all.
pub fn note(question: &[u8]) {
    if let Some(notes) = NOTES.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        && !notes.contains(question)
    {
        notes.insert(question.to_vec());
    }
}

/// The questions that this process noted; None if it did not. From now on it does not.
pub fn noted() -> Option<Questions> {
    NOTES.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// The lines of questions, as they travel.
pub fn joined(questions: &Questions) -> Vec<u8> {
    let lines: Vec<&[u8]> = questions.iter().map(Vec::as_slice).collect();
    lines.join(&b'\n')
}

/// The questions in lines that have travelled.
pub fn split(lines: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    lines
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(<[u8]>::to_vec)
}

/// Where this run's profile is kept, and what it said when the run began.
pub struct Profile {
    /// The file.
    pub path: PathBuf,
    /// What stands before the questions.
    pub header: Vec<u8>,
    /// The questions of earlier runs, and the number of runs since each was asked.
    pub earlier: BTreeMap<Vec<u8>, u32>,
}

impl Profile {
    /// Writes the file anew, if this run asked anything else than the earlier ones. Killed at any moment, it is the old
    /// one or the new one.
    ///
    /// # Errors
    /// The file or its folder cannot be written.
    pub fn keep(&self, asked: &Questions) -> Result<()> {
        let after = self.after(asked);
        if after == self.earlier {
            // It is in use, so that nobody removes it; if that cannot be said, it is removed in time and made again.
            let _ = fs::File::options()
                .append(true)
                .open(&self.path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(());
        }
        let mut text = self.header.clone();
        text.push(b'\n');
        for (question, runs) in &after {
            text.extend_from_slice(runs.to_string().as_bytes());
            text.push(b'\t');
            text.extend_from_slice(question);
            text.push(b'\n');
        }
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        write(folder, &self.path, &text)
            .map_err(|cause| Error::new(format!("cannot write the profile `{}`: {cause}", self.path.display())))?;
        if self.earlier.is_empty() {
            remove_unused(folder);
        }
        Ok(())
    }

    fn after(&self, asked: &Questions) -> BTreeMap<Vec<u8>, u32> {
        let older = self.earlier.iter().map(|(question, runs)| (question.clone(), runs + 1));
        let mut after: BTreeMap<_, _> = older.filter(|&(_, runs)| runs < RUNS).collect();
        after.extend(asked.iter().map(|question| (question.clone(), 0)));
        after
    }
}

fn write(folder: &Path, path: &Path, text: &[u8]) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(".profile-").tempfile_in(folder)?;
    file.write_all(text)?;
    file.persist(path)?;
    Ok(())
}

/// Removes what was not used for long. What cannot be removed is no reason to say anything at the end of a run.
fn remove_unused(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = entry.metadata().and_then(|status| status.modified());
        let age = age
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok());
        let is_ours = name.ends_with(".profile") || name.starts_with(".profile-");
        if is_ours && age.is_some_and(|age| age > UNUSED) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn questions(names: &[&str]) -> Questions {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_question_is_forgotten_after_some_runs_without_it() {
        let mut profile = Profile {
            path: PathBuf::new(),
            header: Vec::new(),
            earlier: BTreeMap::new(),
        };
        profile.earlier = profile.after(&questions(&["always", "once"]));
        for _ in 0..RUNS {
            assert!(profile.earlier.contains_key(&b"once"[..]));
            profile.earlier = profile.after(&questions(&["always"]));
        }
        assert_eq!(profile.earlier, BTreeMap::from([(b"always".to_vec(), 0)]));
    }

    #[test]
    fn lines_survive_the_journey() {
        let asked = questions(&["module\tone\t/lib", "module\ttwo\t/lib"]);
        assert_eq!(split(&joined(&asked)).collect::<Questions>(), asked);
        assert_eq!(split(&joined(&Questions::new())).count(), 0);
    }
}
