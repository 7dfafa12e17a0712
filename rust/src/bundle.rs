//! Reading bundles. `docs/reference/bundle.md` has the format.

use crate::trust::{self, Refusal};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: &[u8] = b"mpiimport bundle ";
const FORMAT: &[u8] = b"3\n";

fn truncated() -> Refusal {
    Refusal::unusable("is truncated. Make it again")
}

fn damaged() -> Refusal {
    Refusal::unusable("is damaged. Make it again")
}

/// A bundle whose table of contents was read.
pub struct Bundle {
    /// Open for reading.
    pub file: File,
    /// The table, marshalled.
    pub table: Vec<u8>,
    /// Where the sections begin.
    pub start: u64,
    /// All of the file.
    pub size_bytes: u64,
}

impl Bundle {
    /// Opens a bundle that only these users can have written.
    pub fn open(path: &Path, owners: &[u32]) -> Result<Self, Refusal> {
        let mut file = trust::open_own(path, owners)?;
        let size_bytes = file.metadata()?.len();
        let mut head = Vec::new();
        let head_bytes = (MAGIC.len() + FORMAT.len() + 12) as u64;
        (&mut file).take(head_bytes).read_to_end(&mut head)?;
        let rest = head
            .strip_prefix(MAGIC)
            .ok_or_else(|| Refusal::unusable("is no bundle of mpiimport"))?;
        let numbers = match rest.strip_prefix(FORMAT) {
            Some(numbers) => numbers,
            None if FORMAT.starts_with(rest) => return Err(truncated()),
            None => return Err(Refusal::unusable("is of another version of mpiimport. Make it again")),
        };
        let (size, checksum) = numbers.split_first_chunk::<8>().ok_or_else(truncated)?;
        let checksum = u32::from_le_bytes(checksum.try_into().map_err(|_| truncated())?);
        let size = u64::from_le_bytes(*size);
        let start = head_bytes.checked_add(size).filter(|start| *start <= size_bytes);
        let mut bundle = Self {
            file,
            table: Vec::new(),
            start: start.ok_or_else(truncated)?,
            size_bytes,
        };
        let mut table = vec![0; bundle.room(head_bytes, size)?];
        bundle.read(head_bytes, checksum, &mut table)?;
        bundle.table = table;
        Ok(bundle)
    }

    /// The size of a section that begins at `offset`, if there is room for it.
    pub fn room(&self, offset: u64, size_bytes: u64) -> Result<usize, Refusal> {
        offset
            .checked_add(size_bytes)
            .filter(|end| *end <= self.size_bytes)
            .and_then(|_| usize::try_from(size_bytes).ok())
            .ok_or_else(truncated)
    }

    /// Fills `bytes` with a section.
    pub fn read(&self, offset: u64, checksum: u32, bytes: &mut [u8]) -> Result<(), Refusal> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|cause| match cause.kind() {
                io::ErrorKind::UnexpectedEof => truncated(),
                _ => Refusal::System(cause),
            })?;
        if crc32fast::hash(bytes) == checksum {
            Ok(())
        } else {
            Err(damaged())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bundle(table: &[u8], sections: &[u8]) -> Vec<u8> {
        let size = (table.len() as u64).to_le_bytes();
        let checksum = crc32fast::hash(table).to_le_bytes();
        [MAGIC, FORMAT, &size, &checksum, table, sections].concat()
    }

    fn open(content: &[u8]) -> Result<Bundle, Refusal> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        Bundle::open(file.path(), &[rustix::process::geteuid().as_raw()])
    }

    #[test]
    fn a_section_is_read_back() {
        let opened = open(&bundle(b"table", b"one,two")).unwrap();
        assert_eq!(opened.table, b"table");
        let mut bytes = [0; 3];
        let checksum = crc32fast::hash(b"two");
        opened.read(opened.start + 4, checksum, &mut bytes).unwrap();
        assert_eq!(&bytes, b"two");
        let damage = opened.read(opened.start, checksum, &mut bytes).unwrap_err();
        assert!(damage.to_string().contains("damaged"));
        assert!(opened.read(opened.start + 5, checksum, &mut bytes).is_err());
        assert!(opened.room(opened.start, 8).is_err());
        assert!(opened.room(opened.start, u64::MAX).is_err());
    }

    #[test]
    fn no_piece_and_no_damage_of_a_head_is_taken_for_a_bundle() {
        let whole = bundle(b"table", b"");
        for size in 0..whole.len() {
            assert!(open(&whole[..size]).is_err(), "{size} bytes");
        }
        for place in 0..whole.len() {
            for bit in 0..8 {
                let mut content = whole.clone();
                content[place] ^= 1 << bit;
                assert!(open(&content).is_err(), "bit {bit} of byte {place}");
            }
        }
    }
}
