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
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

/// What a profile begins with.
const KIND: &[u8] = b"mpiimport profile ";
/// A question that so many runs did not ask is forgotten.
const RUNS: u32 = 8;
/// A profile that was not used for so long is removed, and so is the rest of a write that was killed.
const UNUSED: Duration = Duration::from_secs(90 * 24 * 3600);

/// The end of a job waits so long for its profile to be written, which takes milliseconds.
const LIMIT: Duration = Duration::from_secs(10);

/// Questions, as lines of bytes.
pub type Questions = BTreeSet<Vec<u8>>;

/// What this process noted. Each rank has it until the end, so what most questions share, their folders, is there once.
#[derive(Default)]
struct Notes {
    folders: Vec<Box<[u8]>>,
    /// Where its folders are, and what stands before them.
    questions: BTreeSet<(usize, Box<[u8]>)>,
}

impl Notes {
    fn add(&mut self, question: &[u8]) {
        let mut tabs = (0..question.len()).filter(|&at| question[at] == b'\t');
        let (name, folders) = question.split_at(tabs.nth(1).unwrap_or(question.len()));
        let known = self.folders.iter().position(|one| **one == *folders);
        let place = known.unwrap_or_else(|| {
            self.folders.push(folders.into());
            self.folders.len() - 1
        });
        self.questions.insert((place, name.into()));
    }

    fn questions(&self) -> Questions {
        let whole = |(place, name): &(usize, Box<[u8]>)| [&**name, &*self.folders[*place]].concat();
        self.questions.iter().map(whole).collect()
    }
}

static NOTES: Mutex<Option<Notes>> = Mutex::new(None);

/// From now on, this process takes note of questions.
pub fn take_notes() {
    *NOTES.lock().unwrap_or_else(PoisonError::into_inner) = Some(Notes::default());
}

/// Takes note of a question, if this process does so at all.
pub fn note(question: &[u8]) {
    if let Some(notes) = NOTES.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        notes.add(question);
    }
}

/// The questions that this process noted; None if it did not. From now on it does not.
pub fn noted() -> Option<Questions> {
    let notes = NOTES.lock().unwrap_or_else(PoisonError::into_inner).take();
    notes.as_ref().map(Notes::questions)
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
    /// The lines of the questions of earlier runs, each after the number of runs since it was asked and a tab.
    pub earlier: Vec<u8>,
    /// The user is told that it cannot be written.
    pub speaks: bool,
}

/// What a process without other ranks keeps when it ends, and its number: a child that it forks has this, too.
static ALONE: Mutex<Option<(u32, Profile)>> = Mutex::new(None);

/// Keeps what a process without other ranks noted, when it ends.
pub fn keep_alone() {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((pid, profile)) = alone
        && pid == std::process::id()
        && let Some(asked) = noted()
    {
        profile.keep(asked);
    }
}

impl Profile {
    /// From now on, this process takes note of questions, and keeps them here when it ends, without other ranks.
    pub fn take_notes_alone(self) {
        *ALONE.lock().unwrap_or_else(PoisonError::into_inner) = Some((std::process::id(), self));
        take_notes();
    }

    /// Writes the file anew, if this run asked anything else than the earlier ones. Killed at any moment, it is the old
    /// one or the new one. A filesystem that does not answer is waited for by a thread, and by all others of the job for
    /// `LIMIT` only.
    pub fn keep(self, asked: Questions) {
        let (path, speaks) = (self.path.clone(), self.speaks);
        let (done, waiting) = mpsc::channel();
        let writing = std::thread::Builder::new().spawn(move || done.send(self.write(&asked)));
        let written = match writing {
            Ok(_) => waiting.recv_timeout(LIMIT),
            Err(cause) => Ok(Err(Error::new(format!(
                "cannot start a thread for the profile: {cause}"
            )))),
        };
        let said = match written {
            Ok(Ok(())) => return,
            Ok(Err(cause)) if !speaks => return log::debug!("{cause}"),
            Ok(Err(cause)) => cause.to_string(),
            Err(_) => format!(
                "the filesystem of the profile `{}` did not answer within {} s; the next run is like a first one",
                path.display(),
                LIMIT.as_secs()
            ),
        };
        let _ = writeln!(io::stderr(), "mpiimport: {said}.");
    }

    fn write(&self, asked: &Questions) -> Result<()> {
        let mut lines = Vec::new();
        for (question, runs) in &self.after(asked) {
            lines.extend_from_slice(runs.to_string().as_bytes());
            lines.push(b'\t');
            lines.extend_from_slice(question);
            lines.push(b'\n');
        }
        if lines == self.earlier {
            // It is in use, so that nobody removes it; if that cannot be said, it is removed in time and made again.
            let _ = fs::File::options()
                .append(true)
                .open(&self.path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(());
        }
        let mut text = self.header.clone();
        text.push(b'\n');
        text.extend_from_slice(&lines);
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        replace(folder, &self.path, &text)
            .map_err(|cause| Error::new(format!("cannot write the profile `{}`: {cause}", self.path.display())))?;
        if self.earlier.is_empty() {
            remove_unused(folder);
        }
        Ok(())
    }

    fn after(&self, asked: &Questions) -> BTreeMap<Vec<u8>, u32> {
        let older = split(&self.earlier).filter_map(|line| {
            let tab = line.iter().position(|&byte| byte == b'\t')?;
            let runs: u32 = std::str::from_utf8(&line[..tab]).ok()?.parse().ok()?;
            (runs < RUNS - 1).then(|| (line[tab + 1..].to_vec(), runs + 1))
        });
        let mut after: BTreeMap<_, _> = older.collect();
        after.extend(asked.iter().map(|question| (question.clone(), 0)));
        after
    }
}

fn replace(folder: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let owners = [0, rustix::process::geteuid().as_raw()];
    let is_others = |path: &Path| fs::symlink_metadata(path).is_ok_and(|status| !owners.contains(&status.uid()));
    // A link that another user made may lead to any folder of this one.
    if is_others(folder)
        || folder
            .parent()
            .is_some_and(|above| above.is_symlink() && is_others(above))
    {
        return Err(io::Error::other("its folder belongs to another user"));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(".profile-").tempfile_in(folder)?;
    file.write_all(text)?;
    // A run takes hours: what is there now need not be what was read.
    if !KIND.starts_with(&beginning(path)) {
        return Err(io::Error::other("there is another file by now"));
    }
    file.persist(path)?;
    Ok(())
}

/// What a file begins with: as much as says whether it is a profile, or nothing.
fn beginning(path: &Path) -> Vec<u8> {
    let mut begins = Vec::new();
    let file = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    // What cannot be read says nothing.
    let _ = file.and_then(|file| file.take(KIND.len() as u64).read_to_end(&mut begins));
    begins
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
        // A user may have chosen any folder, with other files of this name.
        let is_ours = || {
            let begins = beginning(&entry.path());
            name.ends_with(".profile") && begins == KIND || name.starts_with(".profile-") && KIND.starts_with(&begins)
        };
        if age.is_some_and(|age| age > UNUSED) && is_ours() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn questions(names: &[&str]) -> Questions {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_question_is_forgotten_after_some_runs_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profiles/one.profile");
        let run = |asked: &[&str]| {
            let text = fs::read(&path).unwrap_or_default();
            let earlier = text
                .strip_prefix(b"mpiimport profile 1\n\n")
                .unwrap_or_default()
                .to_vec();
            let header = b"mpiimport profile 1\n".to_vec();
            let profile = Profile {
                path: path.clone(),
                header,
                earlier,
                speaks: false,
            };
            profile.keep(questions(asked));
            let text = fs::read_to_string(&path).unwrap();
            text.strip_prefix("mpiimport profile 1\n\n").unwrap().to_owned()
        };
        run(&["always", "once"]);
        for runs in 1..RUNS {
            assert_eq!(run(&["always"]), format!("0\talways\n{runs}\tonce\n"));
        }
        assert_eq!(run(&["always"]), "0\talways\n");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn who_reads_meanwhile_finds_one_version_or_another_and_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.profile");
        let versions: Vec<Vec<u8>> = (0..4).map(|version| [KIND, &[version; 200_000]].concat()).collect();
        replace(folder.path(), &path, &versions[0]).unwrap();
        std::thread::scope(|scope| {
            for version in &versions {
                let (folder, path) = (folder.path(), &path);
                scope.spawn(move || (0..50).for_each(|_| replace(folder, path, version).unwrap()));
            }
            for _ in 0..200 {
                assert!(versions.contains(&fs::read(&path).unwrap()));
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_profiles_and_what_is_left_of_them_are_replaced_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let made = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            let long_ago = SystemTime::now() - 2 * UNUSED;
            fs::File::open(&path).unwrap().set_modified(long_ago).unwrap();
            path
        };
        let gone = [
            made("unused.profile", b"mpiimport profile 1\n"),
            made(".profile-killed", b"mpiimp"),
            made(".profile-empty", b""),
        ];
        let kept = [
            made("others.profile", b"[Appearance]\n"),
            made("empty.profile", b""),
            made(".profile-others", b"alias"),
            made("notes", b"mpiimport profile 1\n"),
        ];
        std::os::unix::fs::symlink(&kept[0], folder.path().join("link.profile")).unwrap();
        remove_unused(folder.path());
        assert!(!gone.iter().any(|path| path.exists()));
        assert!(kept.iter().all(|path| path.exists()));
        assert!(replace(folder.path(), &kept[0], KIND).is_err());
        assert_eq!(fs::read(&kept[0]).unwrap(), b"[Appearance]\n");
        for path in [&kept[1], &kept[3], &folder.path().join("link.profile")] {
            replace(folder.path(), path, KIND).unwrap();
        }
        assert_eq!(fs::read(&kept[0]).unwrap(), b"[Appearance]\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn a_number_of_runs_beyond_all_counting_is_forgotten() {
        let profile = Profile {
            path: PathBuf::new(),
            header: Vec::new(),
            earlier: b"99999999999\tmany\n4294967295\tmost\n6\tsome\nnone\n".to_vec(),
            speaks: false,
        };
        assert_eq!(profile.after(&questions(&[])), BTreeMap::from([(b"some".to_vec(), 7)]));
    }

    #[test]
    fn each_question_is_noted_once_and_as_it_was() {
        let asked = [
            "module\tone\t/lib\t/usr/lib",
            "file\t/data",
            "module\ttwo\t/lib\t/usr/lib",
            "module\tone\t/lib",
            "",
        ];
        let mut notes = Notes::default();
        for question in asked.iter().chain(&asked) {
            notes.add(question.as_bytes());
        }
        assert_eq!(notes.questions(), questions(&asked));
        assert_eq!(notes.folders.len(), 3);
    }

    #[test]
    fn lines_survive_the_journey() {
        let asked = questions(&["module\tone\t/lib", "module\ttwo\t/lib"]);
        assert_eq!(split(&joined(&asked)).collect::<Questions>(), asked);
        assert_eq!(split(&joined(&Questions::new())).count(), 0);
    }

    proptest! {
        #[test]
        fn any_lines_survive_the_journey(asked in prop::collection::btree_set(any::<Vec<u8>>(), 0..20)) {
            let is_line = |one: &Vec<u8>| !one.is_empty() && !one.contains(&b'\n');
            let asked: Questions = asked.into_iter().filter(is_line).collect();
            prop_assert_eq!(split(&joined(&asked)).collect::<Questions>(), asked);
        }

        #[test]
        fn whatever_earlier_runs_left_behind_what_is_kept_can_be_read(
            earlier in prop::collection::vec(prop_oneof!["[0-9]{0,11}\tm[^\n]{0,9}".prop_map(String::into_bytes), any::<Vec<u8>>()], 0..20),
            asked in prop::collection::btree_set("module\t[a-z]", 0..4),
        ) {
            let asked: Questions = asked.into_iter().map(String::into_bytes).collect();
            let (path, header, earlier) = (PathBuf::new(), Vec::new(), earlier.join(&b'\n'));
            let profile = Profile { path, header, earlier, speaks: false };
            let after = profile.after(&asked);
            for (question, &runs) in &after {
                prop_assert!(!question.contains(&b'\n'));
                prop_assert_eq!(runs == 0, asked.contains(question));
                prop_assert!(runs < RUNS);
            }
            prop_assert!(asked.iter().all(|question| after.contains_key(question)));
        }
    }
}
