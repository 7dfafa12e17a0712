//! What an ELF file asks of the dynamic loader: the libraries it needs and where it wants them searched.

use crate::error::{Error, Result};
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, ReadCache, ReadRef};
use std::fs::File;
use std::path::Path;

/// The entries of the dynamic section that concern other files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// DT_SONAME, the name by which the loader knows the file once it is loaded.
    pub soname: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// DT_RPATH, split at colons; `$ORIGIN` as it stands. Without a DT_RUNPATH, what is needed inherits it.
    pub rpath: Vec<String>,
    /// DT_RUNPATH, as `rpath`; it serves this file alone.
    pub runpath: Vec<String>,
}

impl Dynamic {
    /// The folders that the file itself wants searched: DT_RUNPATH makes the loader ignore DT_RPATH.
    pub fn search_path(&self) -> &[String] {
        if self.runpath.is_empty() {
            &self.rpath
        } else {
            &self.runpath
        }
    }
}

/// Reads the dynamic section of a 64-bit ELF file; only the parts that hold it.
///
/// # Errors
/// The file cannot be opened, or is no 64-bit ELF file.
pub fn dynamic(path: &Path) -> Result<Dynamic> {
    let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot read `{}`: {cause}", path.display()));
    let file = File::open(path).map_err(|cause| fail(&cause))?;
    let cache = ReadCache::new(file);
    parse(&cache).map_err(|cause| fail(&cause))
}

/// Whether a file is an ELF file that ends before its last segment does. The loader maps what is missing all the same,
/// and the first access to it is a SIGBUS; whatever else may be wrong with a file, the loader says.
pub fn is_truncated(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    segments_end(&ReadCache::new(file)).is_ok_and(|end| end > metadata.len())
}

fn segments_end<'data, R: ReadRef<'data>>(data: R) -> object::Result<u64> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let end =
        |segment: &elf::ProgramHeader64<Endianness>| segment.p_offset(endian).saturating_add(segment.p_filesz(endian));
    Ok(segments.iter().map(end).max().unwrap_or(0))
}

fn parse<'data, R: ReadRef<'data>>(data: R) -> object::Result<Dynamic> {
    let header = elf::FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut found = Dynamic::default();
    let Some((entries, strings)) = sections.dynamic(endian, data)? else {
        return Ok(found);
    };
    let strings = sections.strings(endian, data, strings)?;
    for entry in entries {
        let text =
            || -> object::Result<String> { Ok(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned()) };
        let tag = entry.d_tag(endian);
        if tag == elf::DT_SONAME {
            found.soname = Some(text()?);
        } else if tag == elf::DT_NEEDED {
            found.needed.push(text()?);
        } else if tag == elf::DT_RUNPATH {
            found.runpath = split(&text()?);
        } else if tag == elf::DT_RPATH {
            found.rpath = split(&text()?);
        }
    }
    Ok(found)
}

fn split(search_path: &str) -> Vec<String> {
    search_path
        .split(':')
        .filter(|entry| !entry.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    /// Builds a small library that needs libm.
    fn library(folder: &Path, options: &[&str]) -> std::path::PathBuf {
        let (source, library) = (folder.join("library.c"), folder.join("library.so"));
        fs::write(
            &source,
            "double sqrt(double);\ndouble root(double x) { return sqrt(x); }\n",
        )
        .unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-Wl,-soname,libroot.so.1"])
            .args(options)
            .arg("-o")
            .args([&library, &source])
            .arg("-lm")
            .status()
            .unwrap();
        assert!(built.success());
        library
    }

    #[test]
    fn names_and_folders_are_those_that_the_linker_was_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = "-Wl,-rpath,$ORIGIN/../lib:/opt/lib";
        let folders = ["$ORIGIN/../lib", "/opt/lib"];
        for new in [true, false] {
            let tags = if new {
                "-Wl,--enable-new-dtags"
            } else {
                "-Wl,--disable-new-dtags"
            };
            let found = dynamic(&library(folder.path(), &[path, tags])).unwrap();
            assert_eq!(found.soname.as_deref(), Some("libroot.so.1"));
            assert_eq!(found.needed.first().map(String::as_str), Some("libm.so.6"));
            assert_eq!(found.search_path(), folders);
            assert_eq!(if new { &found.runpath } else { &found.rpath }, &folders);
            assert!(if new { &found.rpath } else { &found.runpath }.is_empty());
        }
        let found = dynamic(&library(folder.path(), &[])).unwrap();
        assert!(found.search_path().is_empty());
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let found = dynamic(&std::env::current_exe().unwrap()).unwrap();
        assert!(found.needed.iter().any(|name| name.starts_with("libc.so")), "{found:?}");
        assert_eq!(found.soname, None);
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = fs::read(library(folder.path(), &[])).unwrap();
        assert!(parse(bytes.as_slice()).is_ok());
        for length in (0..bytes.len()).step_by(61).chain([bytes.len() - 1]) {
            assert!(parse(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn a_damaged_file_is_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(library(folder.path(), &["-Wl,-rpath,/opt/lib"])).unwrap();
        for position in 0..bytes.len() {
            let kept = bytes[position];
            for damage in [0, 1, 0x7f, 0xff] {
                bytes[position] = damage;
                drop(parse(bytes.as_slice()));
            }
            bytes[position] = kept;
        }
    }

    #[test]
    fn what_is_no_library_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path(), &[]);
        let file = folder.path().join("file");
        let mut of_32_bits = fs::read(library).unwrap();
        of_32_bits[4] = 1;
        for bytes in [
            &b""[..],
            b"\x7fELF",
            b"INPUT(libmpi.so.12)\n",
            &[0xff; 4096],
            &of_32_bits,
        ] {
            fs::write(&file, bytes).unwrap();
            let cause = dynamic(&file).unwrap_err().to_string();
            assert!(cause.contains(&file.display().to_string()), "{cause}");
        }
        assert!(dynamic(&folder.path().join("absent")).is_err());
        assert!(dynamic(folder.path()).is_err());
    }
}
