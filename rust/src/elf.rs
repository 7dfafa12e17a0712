//! What an ELF file asks of the dynamic loader: the libraries it needs and where it wants them searched. And the names
//! of modules among its constants.

use crate::error::{Error, Result};
use object::elf;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader};
use object::{NativeEndian, ReadCache, ReadRef, pod};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

type Header = elf::FileHeader64<NativeEndian>;
type Segment = elf::ProgramHeader64<NativeEndian>;
type Entry = elf::Dyn64<NativeEndian>;

/// No dynamic section is larger, and no string: what a damaged file claims must not cost memory.
const LIMIT_BYTES: u64 = 64 << 10;

/// Constants beyond this size are not looked through: they are data.
const CONSTANTS_LIMIT_BYTES: u64 = 16 << 20;
const NAME_LIMIT_BYTES: usize = 200;

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

/// Reads the dynamic section of a file that the loader could load here; only the parts that hold it.
///
/// # Errors
/// The file cannot be opened, is no 64-bit ELF file for this machine, or is damaged.
pub fn dynamic(path: &Path) -> Result<Dynamic> {
    let fail = |cause: &dyn std::fmt::Display| Error::new(format!("cannot read `{}`: {cause}", path.display()));
    let file = File::open(path).map_err(|cause| fail(&cause))?;
    parse(&ReadCache::new(file)).map_err(|cause| fail(&cause))
}

/// What an extension module is about to need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extension {
    /// None if it cannot be read.
    pub dynamic: Option<Dynamic>,
    /// Dotted names among its constants: maybe of modules that it imports.
    pub names: Vec<String>,
}

/// Reads what an extension module is about to need; only the parts that say it.
pub fn extension(path: &Path) -> Extension {
    let Ok(file) = File::open(path) else {
        return Extension::default();
    };
    let data = ReadCache::new(file);
    Extension {
        dynamic: parse(&data).ok(),
        names: constants(&data).map_or_else(Vec::new, dotted_names),
    }
}

/// The section in which compilers put text. None in a file without, or a damaged one.
fn constants<'data, R: ReadRef<'data>>(data: R) -> Option<&'data [u8]> {
    let header = Header::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let (_, section) = header
        .sections(endian, data)
        .ok()?
        .section_by_name(endian, b".rodata")?;
    (section.sh_size(endian) <= CONSTANTS_LIMIT_BYTES).then(|| section.data(endian, data).ok())?
}

/// The texts, each between zeros, that are dotted names of Python.
fn dotted_names(constants: &[u8]) -> Vec<String> {
    let is_name = |part: &[u8]| {
        part.first().is_some_and(|first| !first.is_ascii_digit())
            && part.iter().all(|&byte| byte == b'_' || byte.is_ascii_alphanumeric())
    };
    let is_dotted = |text: &[u8]| {
        text.len() <= NAME_LIMIT_BYTES && text.contains(&b'.') && text.split(|&byte| byte == b'.').all(is_name)
    };
    let found: BTreeSet<&[u8]> = constants
        .split(|&byte| byte == 0)
        .filter(|text| is_dotted(text))
        .collect();
    found
        .into_iter()
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .collect()
}

/// Whether a file is an ELF file of another word size or for another machine: the loader's search passes it over.
pub fn is_foreign(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| is_for_another_machine(&ReadCache::new(file)))
}

/// Whether a file is an ELF file that ends before its last segment does. The loader maps what is missing all the same,
/// and the first access to it is a SIGBUS; whatever else may be wrong with a file, the loader says.
pub fn is_truncated(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let Ok(metadata) = file.metadata() else { return false };
    segments(&ReadCache::new(file)).is_ok_and(|segments| {
        segments
            .iter()
            .any(|one| is_loaded(one) && file_end(one) > metadata.len())
    })
}

fn is_for_another_machine<'data, R: ReadRef<'data>>(data: R) -> bool {
    let Ok(header) = Header::parse(data) else {
        return elf::FileHeader32::<NativeEndian>::parse(data).is_ok();
    };
    let ours = match std::env::consts::ARCH {
        "x86_64" => elf::EM_X86_64,
        "aarch64" => elf::EM_AARCH64,
        "powerpc64" => elf::EM_PPC64,
        "riscv64" => elf::EM_RISCV,
        "s390x" => elf::EM_S390,
        _ => return false,
    };
    header.endian().is_ok() && header.e_machine(NativeEndian) != ours
}

fn segments<'data, R: ReadRef<'data>>(data: R) -> Result<&'data [Segment]> {
    if is_for_another_machine(data) {
        return Err(Error::new("it is for another machine"));
    }
    let read = || {
        let header = Header::parse(data)?;
        header.program_headers(header.endian()?, data)
    };
    read().map_err(|cause: object::Error| Error::new(cause.to_string()))
}

fn is_loaded(segment: &Segment) -> bool {
    segment.p_type(NativeEndian) == elf::PT_LOAD
}

fn file_end(segment: &Segment) -> u64 {
    segment
        .p_offset(NativeEndian)
        .saturating_add(segment.p_filesz(NativeEndian))
}

/// The bytes that will be at an address, at most so many.
fn bytes_at<'data, R: ReadRef<'data>>(data: R, segments: &[Segment], address: u64, most: u64) -> Option<&'data [u8]> {
    segments
        .iter()
        .filter(|segment| is_loaded(segment))
        .find_map(|segment| {
            let start = address
                .checked_sub(segment.p_vaddr(NativeEndian))?
                .checked_add(segment.p_offset(NativeEndian))?;
            let rest = file_end(segment).checked_sub(start).filter(|&rest| rest > 0)?;
            data.read_bytes_at(start, most.min(rest)).ok()
        })
}

/// Finds its way by addresses and segments, as the loader does: a library need not have sections.
fn parse<'data, R: ReadRef<'data>>(data: R) -> Result<Dynamic> {
    let segments = segments(data)?;
    let mut found = Dynamic::default();
    let Some(dynamic) = segments
        .iter()
        .rfind(|segment| segment.p_type(NativeEndian) == elf::PT_DYNAMIC)
    else {
        return Ok(found);
    };
    let size_bytes = dynamic.p_filesz(NativeEndian).min(LIMIT_BYTES);
    let entries = bytes_at(data, segments, dynamic.p_vaddr(NativeEndian), size_bytes)
        .and_then(|bytes| pod::slice_from_bytes(bytes, bytes.len() / size_of::<Entry>()).ok());
    let Some((entries, _)) = entries else {
        return Err(Error::new("it does not hold its dynamic section"));
    };
    let entries = || {
        entries
            .iter()
            .map(|entry: &Entry| (entry.d_tag(NativeEndian), entry.d_val(NativeEndian)))
            .take_while(|&(tag, _)| tag != elf::DT_NULL)
    };
    let strings = entries().filter(|&(tag, _)| tag == elf::DT_STRTAB).last();
    let string = |offset: u64| {
        let address = strings?.1.checked_add(offset)?;
        // Few are longer than this, but a search path may be.
        [256, LIMIT_BYTES].into_iter().find_map(|most| {
            let bytes = bytes_at(data, segments, address, most)?;
            let length = bytes.iter().position(|&byte| byte == 0)?;
            Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
        })
    };
    for (tag, value) in entries() {
        let text = || string(value).ok_or_else(|| Error::new("it does not hold the names in its dynamic section"));
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
    use proptest::prelude::*;
    use std::fs;
    use std::io::Read;
    use std::ops::Range;
    use std::os::unix::fs::FileExt;
    use std::process::Command;
    use std::sync::OnceLock;

    const E_SHOFF: Range<usize> = 40..48;
    const E_SHENTSIZE_TO_END: Range<usize> = 58..64;

    /// Builds a library of this source.
    fn built(folder: &Path, source: &str, options: &[&str]) -> std::path::PathBuf {
        let (file, library) = (folder.join("library.c"), folder.join("library.so"));
        fs::write(&file, source).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &file])
            .args(options)
            .status()
            .unwrap();
        assert!(built.success());
        library
    }

    /// Builds a small library that needs libm.
    fn library(folder: &Path, options: &[&str]) -> std::path::PathBuf {
        let always = ["-Wl,--no-as-needed", "-Wl,-soname,libroot.so.1", "-lm"];
        let source = "double sqrt(double);\ndouble root(double x) { return sqrt(x); }\n";
        built(folder, source, &[&always, options].concat())
    }

    /// Builds a library that has these texts.
    fn library_with(folder: &Path, texts: &[&str]) -> std::path::PathBuf {
        let constants: Vec<String> = texts.iter().map(|text| format!("\"{text}\"")).collect();
        let source = format!("const char *texts[] = {{{}}};\n", constants.join(", "));
        built(folder, &source, &[])
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
    fn names_of_modules_are_among_the_constants_of_an_extension_module() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["package.module", "package.sub._other9"];
        let others = ["no dots", "word", "package..twice", "1.5", "see package.it"];
        let path = library_with(folder.path(), &[&names[..], &others[..]].concat());
        let found = extension(&path);
        assert_eq!(found.names, names);
        assert_eq!(found.dynamic, dynamic(&path).ok());
        assert_eq!(extension(&folder.path().join("library.c")), Extension::default());
        assert_eq!(extension(&folder.path().join("absent.so")), Extension::default());
    }

    #[test]
    fn long_search_paths_are_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path: Vec<String> = (0..500)
            .map(|number| format!("/opt/software/package-{number}/lib"))
            .collect();
        let found = dynamic(&library(folder.path(), &[&format!("-Wl,-rpath,{}", path.join(":"))])).unwrap();
        assert_eq!(found.search_path(), path);
    }

    #[test]
    fn section_headers_are_not_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(library(folder.path(), &["-Wl,-rpath,/opt/lib"])).unwrap();
        let expected = parse(bytes.as_slice()).unwrap();
        let sections = usize::try_from(u64::from_ne_bytes(bytes[E_SHOFF].try_into().unwrap())).unwrap();
        bytes.truncate(sections);
        bytes[E_SHOFF].fill(0);
        bytes[E_SHENTSIZE_TO_END].fill(0);
        assert_eq!(parse(bytes.as_slice()).unwrap(), expected);
        assert_eq!(expected.search_path(), ["/opt/lib"]);
    }

    #[test]
    fn a_truncated_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path(), &[]);
        let bytes = fs::read(&library).unwrap();
        let end = segments(bytes.as_slice())
            .unwrap()
            .iter()
            .filter(|one| is_loaded(one))
            .map(file_end)
            .max()
            .unwrap();
        let end = usize::try_from(end).unwrap();
        for length in (0..end).step_by(61).chain([end - 1, end, bytes.len()]) {
            fs::write(&library, &bytes[..length]).unwrap();
            let is_error = parse(&bytes[..length]).is_err();
            assert_eq!(
                is_error || is_truncated(&library),
                length < end,
                "{length} of {end} bytes"
            );
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

    /// The file is a terabyte long, so that no size that it claims is beyond its end.
    #[test]
    fn a_damaged_file_costs_neither_time_nor_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = library(folder.path(), &["-Wl,-rpath,/opt/lib"]);
        let bytes = fs::read(&path).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let all = segments(bytes.as_slice()).unwrap();
        let section = all
            .iter()
            .find(|segment| segment.p_type(NativeEndian) == elf::PT_DYNAMIC)
            .unwrap();
        let section = usize::try_from(section.p_offset(NativeEndian)).unwrap();
        let headers = size_of::<Header>() + size_of_val(all);
        let began = std::time::Instant::now();
        let mut random = fastrand::Rng::with_seed(1);
        let mut errors = 0;
        for _ in 0..5000 {
            let mut damaged = bytes.clone();
            for _ in 0..random.usize(1..8) {
                let start = [0, section][random.usize(..2)];
                damaged[start + random.usize(..headers)] = random.u8(..);
            }
            file.write_all_at(&damaged, 0).unwrap();
            errors += usize::from(dynamic(&path).is_err());
            is_truncated(&path);
            is_foreign(&path);
        }
        assert!((500..4500).contains(&errors), "{errors}");
        assert!(began.elapsed().as_secs() < 30); // a minute where sizes are believed, if there is the memory
    }

    #[test]
    fn what_is_no_library_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let library = library(folder.path(), &[]);
        let file = folder.path().join("file");
        let elf = fs::read(library).unwrap();
        let changed = |at: usize, to: u8| {
            let mut elf = elf.clone();
            elf[at] = to;
            elf
        };
        let (of_32_bits, of_another_machine, of_other_bytes) = (changed(4, 1), changed(18, 0x2b), changed(5, 2));
        for (bytes, foreign) in [
            (&b""[..], false),
            (b"\x7fELF", false),
            (b"INPUT(libmpi.so.12)\n", false),
            (&[0xff; 4096], false),
            (&of_32_bits, true),
            (&of_another_machine, true),
            (&of_other_bytes, false),
        ] {
            fs::write(&file, bytes).unwrap();
            let cause = dynamic(&file).unwrap_err().to_string();
            assert!(cause.contains(&file.display().to_string()), "{cause}");
            assert_eq!(is_foreign(&file), foreign);
        }
        assert!(dynamic(&folder.path().join("absent")).is_err());
        assert!(dynamic(folder.path()).is_err());
    }
    /// A file that has a dynamic section with these entries, and strings for them.
    fn image(entries: &[(u64, u64)], strings: &[u8]) -> Vec<u8> {
        let (start, size) = (64 + 2 * 56, 16 * (entries.len() as u64 + 2));
        let mut bytes = Vec::new();
        let this = File::open(std::env::current_exe().unwrap()).unwrap();
        this.take(64).read_to_end(&mut bytes).unwrap();
        bytes[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        bytes[54..58].copy_from_slice([56_u16.to_ne_bytes(), 2_u16.to_ne_bytes()].concat().as_slice());
        let end = start + size + strings.len() as u64;
        for (kind, offset, size) in [(elf::PT_LOAD, 0, end), (elf::PT_DYNAMIC, start, size)] {
            bytes.extend(u64::from(kind.0).to_ne_bytes());
            bytes.extend(
                [offset, offset, offset, size, size, 0]
                    .iter()
                    .flat_map(|word| word.to_ne_bytes()),
            );
        }
        for &(tag, value) in entries.iter().chain(&[(elf::DT_STRTAB.0 as u64, start + size), (0, 0)]) {
            bytes.extend([tag, value].iter().flat_map(|word| word.to_ne_bytes()));
        }
        bytes.extend(strings);
        bytes
    }

    proptest! {
        #[test]
        fn in_a_damaged_file_there_are_names_or_none(
            damages in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
            length: prop::sample::Index,
        ) {
            static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
            let whole = WHOLE.get_or_init(|| {
                fs::read(library_with(tempfile::tempdir().unwrap().path(), &["package.module"])).unwrap()
            });
            let sections = usize::try_from(u64::from_ne_bytes(whole[E_SHOFF].try_into().unwrap())).unwrap();
            let mut bytes = whole.clone();
            for (in_header, place, value) in damages {
                let place = if in_header { place.index(64) } else { sections + place.index(whole.len() - sections) };
                bytes[place] = value;
                let _ = constants(bytes.as_slice()).map(dotted_names);
            }
            let _ = constants(&bytes[..length.index(bytes.len())]).map(dotted_names);
        }

        #[test]
        fn whatever_a_dynamic_section_says_is_read_as_it_stands_or_refused(
            names in prop::collection::vec("[a-z$/:.]{0,20}", 1..6),
            tags in prop::collection::vec(prop_oneof![4 => Just(1_u64), 1 => Just(14), 1 => Just(15), 1 => Just(29), 1 => 30..99_u64], 5),
            damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            length: prop::sample::Index,
        ) {
            let mut strings = Vec::new();
            let entries: Vec<_> = names
                .iter()
                .zip(&tags)
                .map(|(name, &tag)| {
                    let offset = strings.len() as u64;
                    strings.extend([name.as_bytes(), b"\0"].concat());
                    (tag, offset)
                })
                .collect();
            let mut bytes = image(&entries, &strings);
            let found = parse(bytes.as_slice()).unwrap();
            let with = |wanted: u64| names.iter().zip(&tags).filter(move |(_, tag)| **tag == wanted).map(|(name, _)| name);
            prop_assert_eq!(found.needed.iter().collect::<Vec<_>>(), with(1).collect::<Vec<_>>());
            prop_assert_eq!(found.soname.as_ref(), with(14).next_back());
            prop_assert_eq!(found.runpath, with(29).next_back().map_or(Vec::new(), |path| split(path)));
            for (place, value) in damages {
                let place = place.index(bytes.len());
                bytes[place] = value;
                let _ = parse(bytes.as_slice());
            }
            let _ = parse(&bytes[..length.index(bytes.len())]);
        }
    }
}
