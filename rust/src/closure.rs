//! Which libraries a native module brings along: the closure of its DT_NEEDED, found as the dynamic loader would.
//!
//! The order of the search is that of ld.so(8): DT_RPATH of the file and of those that need it, unless it has a
//! DT_RUNPATH; LD_LIBRARY_PATH; DT_RUNPATH; and then the system's own folders, whose libraries stay where they are.

use crate::elf::{self, Dynamic};
use crate::error::{Error, Result};
use crate::modules;
use libloading::os::unix::Library as Handle;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// Where the loader looks, and what stays behind.
pub struct Search {
    /// LD_LIBRARY_PATH as it was when the process started.
    pub library_path: Vec<PathBuf>,
    /// Libraries below these folders do not travel: each host has its own.
    pub system: Vec<PathBuf>,
    /// File names of libraries that each process has loaded already: the loader does not search for them, nor for
    /// their sonames.
    pub loaded: HashSet<String>,
}

/// A library that travels with a native module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Where the loader would open it.
    pub path: PathBuf,
    /// The name by which other files need it, if it has one.
    pub soname: Option<String>,
}

/// Finds closures; what it has read of one file serves all.
pub struct Closures {
    search: Search,
    read: HashMap<PathBuf, Option<Dynamic>>,
    candidates: HashMap<PathBuf, Candidate>,
    /// The folders of variants for some processors, and a folder without its links, for each folder.
    folders: HashMap<PathBuf, (Vec<PathBuf>, Option<PathBuf>)>,
}

/// What the loader would make of a file.
#[derive(Clone)]
enum Candidate {
    /// It would search on.
    Unfit,
    /// It would take it, but it stays where it lies.
    Stays,
    /// It would take it.
    Travels(Dynamic),
}

/// A file with those that need it, for the DT_RPATH that it inherits.
struct Chain<'a> {
    origin: &'a Path,
    dynamic: &'a Dynamic,
    needed_by: Option<&'a Chain<'a>>,
}

impl Closures {
    /// Prepares to search; `read` is what was read of files already.
    pub fn new(search: Search, read: HashMap<PathBuf, Option<Dynamic>>) -> Self {
        Self {
            search,
            read,
            candidates: HashMap::new(),
            folders: HashMap::new(),
        }
    }

    /// Reads files ahead, many at once.
    pub fn read_ahead(&mut self, files: &[PathBuf]) {
        let unread: Vec<_> = files.iter().filter(|&file| !self.read.contains_key(file)).collect();
        let found = modules::in_parallel(&unread, modules::threads_for(unread.len()), |file| {
            elf::dynamic(file).ok()
        });
        self.read.extend(unread.into_iter().cloned().zip(found));
    }

    /// The libraries that the file needs, each after those that it needs itself. What cannot be read or found is left
    /// to the loader, which says what is wrong with it.
    pub fn of(&mut self, file: &Path) -> Vec<Library> {
        let mut found = Vec::new();
        let mut visited = HashSet::new();
        if let Some(dynamic) = self.dynamic(file) {
            let chain = Chain {
                origin: file.parent().unwrap_or(Path::new("/")),
                dynamic: &dynamic,
                needed_by: None,
            };
            self.follow(&chain, &mut visited, &mut found);
        }
        found
    }

    fn follow(&mut self, chain: &Chain<'_>, visited: &mut HashSet<String>, found: &mut Vec<Library>) {
        for name in &chain.dynamic.needed {
            if self.search.loaded.contains(name) || is_loaded(name) || !visited.insert(name.clone()) {
                continue;
            }
            let Some((path, dynamic)) = self.find(name, chain) else {
                continue;
            };
            let link = Chain {
                origin: path.parent().unwrap_or(Path::new("/")),
                dynamic: &dynamic,
                needed_by: Some(chain),
            };
            self.follow(&link, visited, found);
            found.push(Library {
                soname: dynamic.soname.clone(),
                path,
            });
        }
    }

    /// The file that the loader would open for a name, unless it is the system's.
    fn find(&mut self, name: &str, chain: &Chain<'_>) -> Option<(PathBuf, Dynamic)> {
        if name.contains('/') {
            return None; // opened at this very path
        }
        let mut folders = Vec::new();
        if chain.dynamic.runpath.is_empty() {
            let mut link = Some(chain);
            while let Some(file) = link {
                if file.dynamic.runpath.is_empty() {
                    folders.extend(file.dynamic.rpath.iter().flat_map(|folder| expand(folder, file.origin)));
                }
                link = file.needed_by;
            }
        }
        folders.extend(self.search.library_path.iter().cloned());
        let runpath = &chain.dynamic.runpath;
        folders.extend(runpath.iter().flat_map(|folder| expand(folder, chain.origin)));
        for folder in folders {
            let path = folder.join(name);
            let candidate = match self.candidates.get(&path) {
                Some(candidate) => candidate.clone(),
                None => {
                    let candidate = self.judge(&folder, &path, name);
                    self.candidates.insert(path.clone(), candidate.clone());
                    candidate
                }
            };
            match candidate {
                Candidate::Unfit => {}
                Candidate::Stays => return None,
                Candidate::Travels(dynamic) => return Some((path, dynamic)),
            }
        }
        None
    }

    fn judge(&mut self, folder: &Path, path: &Path, name: &str) -> Candidate {
        let (variants, real) = self
            .folders
            .entry(folder.to_owned())
            .or_insert_with(|| (variants(folder), std::fs::canonicalize(folder).ok()))
            .clone();
        let Some(real) = real else { return Candidate::Unfit };
        // Variants for some processors only: which one is taken, the loader of each host decides.
        if variants.iter().any(|level| level.join(name).exists()) {
            return Candidate::Stays;
        }
        let dynamic = match self.dynamic(path) {
            Some(dynamic) => dynamic,
            None if !path.is_file() || elf::is_foreign(path) => return Candidate::Unfit,
            None if elf::is_truncated(path) => Dynamic::default(), // who imports it is told so
            None => return Candidate::Stays,                       // whatever else is wrong with it, the loader says
        };
        let resolved = match path.symlink_metadata() {
            Ok(status) if status.is_symlink() => std::fs::canonicalize(path).ok(),
            _ => Some(real.join(name)),
        };
        let Some(resolved) = resolved else {
            return Candidate::Stays;
        };
        let is_system = |system: &PathBuf| path.starts_with(system) || resolved.starts_with(system);
        if self.search.system.iter().any(is_system) {
            Candidate::Stays
        } else {
            Candidate::Travels(dynamic)
        }
    }

    fn dynamic(&mut self, path: &Path) -> Option<Dynamic> {
        self.read
            .entry(path.to_owned())
            .or_insert_with(|| elf::dynamic(path).ok())
            .clone()
    }
}

fn variants(folder: &Path) -> Vec<PathBuf> {
    let levels = std::fs::read_dir(folder.join("glibc-hwcaps"));
    levels.map_or_else(
        |_| Vec::new(),
        |levels| levels.flatten().map(|level| level.path()).collect(),
    )
}

/// Replaces the loader's tokens. `$LIB` differs between distributions: all its values are tried.
fn expand(folder: &str, origin: &Path) -> Vec<PathBuf> {
    let folder = replace(folder, "ORIGIN", &origin.display().to_string());
    let folder = replace(&folder, "PLATFORM", std::env::consts::ARCH);
    let multiarch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    let mut folders: Vec<PathBuf> = [multiarch.as_str(), "lib64", "lib"]
        .iter()
        .map(|lib| normal(&replace(&folder, "LIB", lib)))
        .collect();
    folders.dedup();
    folders
}

fn replace(text: &str, token: &str, value: &str) -> String {
    text.replace(&format!("${{{token}}}"), value)
        .replace(&format!("${token}"), value)
}

/// The path without `.` and `..`, taken by its letters, so that a copy of the tree can mirror it.
fn normal(path: &str) -> PathBuf {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    PathBuf::from(format!("/{}", parts.join("/")))
}

/// The file names of what this process has loaded: the loader matches them, or their sonames, without a search.
pub fn loaded_names() -> HashSet<String> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return HashSet::new();
    };
    maps.lines()
        .filter_map(|line| line.split_once('/'))
        .filter_map(|(_, path)| path.rsplit('/').next())
        .filter(|name| name.contains(".so"))
        .map(str::to_owned)
        .collect()
}

/// Loads a library for good, unless one with its soname is loaded already.
///
/// # Errors
/// What the dynamic loader says.
pub fn preload(path: &Path, soname: Option<&str>, flags: c_int) -> Result<()> {
    if soname.is_some_and(is_loaded) {
        return Ok(());
    }
    // SAFETY: the extension module that is being imported would load it at this moment.
    let library = unsafe { Handle::open(Some(path), flags) }
        .map_err(|cause| Error::new(format!("{}", std::error::Error::source(&cause).unwrap_or(&cause))))?;
    std::mem::forget(library);
    Ok(())
}

/// Whether a library with this soname is loaded. Asked with RTLD_NOLOAD, the loader would search its folders for it.
fn is_loaded(soname: &str) -> bool {
    let mut wanted = Wanted { soname, found: false };
    // SAFETY: `compare_soname` is called before this returns, with what it is given here.
    unsafe { libc::dl_iterate_phdr(Some(compare_soname), (&raw mut wanted).cast()) };
    wanted.found
}

struct Wanted<'a> {
    soname: &'a str,
    found: bool,
}

/// An entry of a loaded file's dynamic section.
#[repr(C)]
struct Entry {
    tag: isize,
    value: usize,
}

/// Called for each loaded file, until it returns something else than 0.
unsafe extern "C" fn compare_soname(info: *mut libc::dl_phdr_info, _size: usize, wanted: *mut c_void) -> c_int {
    const DT_NULL: isize = 0;
    const DT_STRTAB: isize = 5;
    const DT_SONAME: isize = 14;
    // SAFETY: both pointers are valid during the call; the headers, the dynamic section, which ends with DT_NULL, and
    // its strings are as the loader has mapped them, and it keeps them mapped meanwhile.
    unsafe {
        let (info, wanted) = (&*info, &mut *wanted.cast::<Wanted<'_>>());
        let base = info.dlpi_addr as usize;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        let Some(dynamic) = headers.iter().find(|header| header.p_type == libc::PT_DYNAMIC) else {
            return 0;
        };
        let (mut strings, mut soname) = (None, None);
        let mut entry = base.wrapping_add(dynamic.p_vaddr as usize) as *const Entry;
        while (*entry).tag != DT_NULL {
            match (*entry).tag {
                DT_STRTAB => strings = Some((*entry).value),
                DT_SONAME => soname = Some((*entry).value),
                _ => {}
            }
            entry = entry.add(1);
        }
        if let (Some(strings), Some(soname)) = (strings, soname) {
            // The loader makes it an address, except in what it cannot write to.
            let strings = if strings < base { base + strings } else { strings };
            wanted.found = CStr::from_ptr((strings + soname) as *const c_char).to_bytes() == wanted.soname.as_bytes();
        }
        c_int::from(wanted.found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_loaded_is_known_by_its_soname() {
        assert!(is_loaded("libc.so.6"));
        assert!(!is_loaded("libc.so"));
    }
    proptest! {
        #[test]
        fn a_search_path_leads_to_folders_without_tokens_and_dots(
            parts in prop::collection::vec(prop_oneof!["[.]{0,3}", "[a-z]{1,3}", r"\$(\{ORIGIN\}|ORIGIN|LIB|\{LIB|PLATFORM|\{\})", any::<String>()], 0..8),
            origin in "(/[a-z.]{0,3}){1,4}",
        ) {
            let folders = expand(&parts.join("/"), Path::new(&origin));
            prop_assert!(!folders.is_empty() && folders.len() <= 3);
            for folder in folders {
                let text = folder.to_str().unwrap();
                prop_assert!(text.starts_with('/') && !text.split('/').any(|part| part == "." || part == ".."));
                prop_assert_eq!(normal(text), folder);
            }
        }

        /// Names as hostile as they come, and circles.
        #[test]
        fn whatever_libraries_say_that_they_need_each_that_is_there_travels_once(
            needs in prop::collection::vec(prop::collection::vec(0..12_usize, 0..5), 8),
        ) {
            const NAMES: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "..", "", "x/../a", "absent\n"];
            let folder = tempfile::tempdir().unwrap();
            let home = folder.path().canonicalize().unwrap();
            let (library_path, system, loaded) = (vec![home.clone()], Vec::new(), HashSet::new());
            let mut closures = Closures::new(Search { library_path, system, loaded }, HashMap::new());
            for (name, needs) in NAMES.iter().zip(&needs) {
                std::fs::write(home.join(name), "").unwrap();
                let needed = needs.iter().map(|&at| NAMES[at].to_owned()).collect();
                let dynamic = Dynamic { needed, ..Dynamic::default() };
                closures.read.insert(home.join(name), Some(dynamic));
            }
            let mut reached = HashSet::new();
            let mut pending = needs[0].clone();
            while let Some(at) = pending.pop() {
                if at < needs.len() && reached.insert(home.join(NAMES[at])) {
                    pending.extend(&needs[at]);
                }
            }
            let found: Vec<_> = closures.of(&home.join("a")).into_iter().map(|library| library.path).collect();
            prop_assert_eq!(found.len(), reached.len());
            prop_assert_eq!(found.into_iter().collect::<HashSet<_>>(), reached);
        }
    }
}
