//! Which libraries a native module brings along: the closure of its DT_NEEDED, found as the dynamic loader would.
//!
//! The order of the search is that of ld.so(8): DT_RPATH of the file and of those that need it, unless it has a
//! DT_RUNPATH; LD_LIBRARY_PATH; DT_RUNPATH; and then the system's own folders, whose libraries stay where they are.

use crate::elf::{self, Dynamic};
use crate::error::{Error, Result};
use libloading::os::unix::Library as Handle;
use std::collections::{HashMap, HashSet};
use std::ffi::c_int;
use std::path::{Path, PathBuf};

/// Where the loader looks, and what stays behind.
pub struct Search {
    /// LD_LIBRARY_PATH as it was when the process started.
    pub library_path: Vec<PathBuf>,
    /// Libraries below these folders do not travel: each host has its own.
    pub system: Vec<PathBuf>,
    /// Names of libraries that each process has loaded already: the loader does not search for them.
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
}

/// A file with those that need it, for the DT_RPATH that it inherits.
struct Chain<'a> {
    origin: &'a Path,
    dynamic: &'a Dynamic,
    needed_by: Option<&'a Chain<'a>>,
}

impl Closures {
    /// Prepares to search.
    pub fn new(search: Search) -> Self {
        Self {
            search,
            read: HashMap::new(),
        }
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
            if self.search.loaded.contains(name) || !visited.insert(name.clone()) {
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
            // Variants for some processors only: which one is taken, the loader of each host decides.
            if folder.join("glibc-hwcaps").is_dir() {
                return None;
            }
            let path = folder.join(name);
            // What is no library is left to the loader, but counts: it may be one that was cut off.
            if let Some(dynamic) = self.dynamic(&path).or_else(|| path.is_file().then(Dynamic::default)) {
                let resolved = std::fs::canonicalize(&path).ok()?;
                let is_system = |system: &PathBuf| path.starts_with(system) || resolved.starts_with(system);
                return (!self.search.system.iter().any(is_system)).then_some((path, dynamic));
            }
        }
        None
    }

    fn dynamic(&mut self, path: &Path) -> Option<Dynamic> {
        self.read
            .entry(path.to_owned())
            .or_insert_with(|| elf::dynamic(path).ok())
            .clone()
    }
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
    if let Some(soname) = soname {
        // SAFETY: RTLD_NOLOAD runs no code of the library.
        let loaded = unsafe { Handle::open(Some(soname), flags | libc::RTLD_NOLOAD) };
        if loaded.is_ok() {
            return Ok(());
        }
    }
    // SAFETY: the extension module that is being imported would load it at this moment.
    let library = unsafe { Handle::open(Some(path), flags) }
        .map_err(|cause| Error::new(format!("{}", std::error::Error::source(&cause).unwrap_or(&cause))))?;
    std::mem::forget(library);
    Ok(())
}
