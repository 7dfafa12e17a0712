//! Code on its way to other ranks: marshalled by Python, and compressed by LZ4.
//!
//! Half of the bytes is saved on the network and in the memory of each host, for a small part of the time that Python
//! takes to unmarshal the code.

use crate::error::{Error, Result};

/// Bytes of the size that stands before what was compressed.
const SIZE_BYTES: usize = 4;
/// LZ4 makes data smaller by a factor of 255 at most.
const MOST_COMPRESSED: usize = 255;

/// The size of this, and this, compressed.
pub fn compress(code: &[u8]) -> Vec<u8> {
    lz4_flex::block::compress_prepend_size(code)
}

/// The size in bytes of what was compressed.
pub fn size_bytes(compressed: &[u8]) -> Result<usize> {
    let damaged = || Error::new("code that another rank read was damaged on its way");
    let (head, rest) = compressed.split_first_chunk::<SIZE_BYTES>().ok_or_else(damaged)?;
    let size_bytes = u32::from_le_bytes(*head) as usize;
    if size_bytes.div_ceil(MOST_COMPRESSED) > rest.len() {
        return Err(damaged());
    }
    Ok(size_bytes)
}

/// Decompresses into a buffer of just the size that `size_bytes` tells.
pub fn decompress(compressed: &[u8], into: &mut [u8]) -> Result<()> {
    let compressed = compressed.get(SIZE_BYTES..).unwrap_or_default();
    match lz4_flex::block::decompress_into(compressed, into) {
        Ok(written) if written == into.len() => Ok(()),
        _ => Err(Error::new("code that another rank read was damaged on its way")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decompressed(compressed: &[u8]) -> Result<Vec<u8>> {
        let mut code = vec![0; size_bytes(compressed)?];
        decompress(compressed, &mut code)?;
        Ok(code)
    }

    proptest! {
        #[test]
        fn code_arrives_as_it_was(words in prop::collection::vec("[a-c]{0,9}", 0..99), size in 0..99_999_usize) {
            for code in [words.concat().into_bytes(), vec![0; size]] {
                prop_assert_eq!(decompressed(&compress(&code)).unwrap(), code);
            }
        }

        #[test]
        fn damaged_code_is_an_error_or_of_the_size_it_says(
            words in prop::collection::vec("[a-c]{0,9}", 0..99),
            damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            length in any::<prop::sample::Index>(),
        ) {
            let mut compressed = compress(words.concat().as_bytes());
            for (place, value) in damages {
                let place = place.index(compressed.len());
                compressed[place] = value;
            }
            compressed.truncate(length.index(compressed.len() + 1));
            if let Ok(code) = decompressed(&compressed) {
                prop_assert_eq!(code.len(), size_bytes(&compressed).unwrap());
                prop_assert!(code.len() <= MOST_COMPRESSED * compressed.len());
            }
        }
    }
}
