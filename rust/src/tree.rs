//! Bytes on their way from the root to the other node leaders, down a binary tree.
//!
//! Each host receives them once, in segments, and passes a segment on while the next ones arrive; what is under way
//! needs no waiting, so the root reads what follows meanwhile. MPI's own broadcast of large messages scatters and
//! gathers them: to some of 11 hosts, MPICH 5 brought them 1.6 times.

use crate::error::Result;
use crate::mpi::{Comm, Mpi, Request};
use std::collections::VecDeque;
use std::ops::Range;

/// One message carries at most so much.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// So many segments are under way at once: so much is in the memory of a process, and as much again where MPI keeps what
/// comes too early.
const SEGMENTS: usize = 8;

/// One host's place in the tree, and what is under way there. `K` keeps the memory of a segment.
pub struct Tree<'a, K> {
    mpi: &'a Mpi,
    leaders: Comm,
    parent: Option<usize>,
    children: Range<usize>,
    under_way: VecDeque<Segment<K>>,
}

struct Segment<K> {
    start: *mut u8,
    size_bytes: usize,
    arriving: Option<Request>,
    leaving: Vec<Request>,
    keeper: K,
}

impl<'a, K> Tree<'a, K> {
    /// This host's place among the node leaders.
    ///
    /// # Errors
    /// MPI failed.
    pub fn new(mpi: &'a Mpi, leaders: Comm) -> Result<Self> {
        let (rank, size) = (mpi.rank(leaders)?, mpi.size(leaders)?);
        Ok(Self {
            mpi,
            leaders,
            parent: rank.checked_sub(1).map(|before| before / 2),
            children: (2 * rank + 1).min(size)..(2 * rank + 3).min(size),
            under_way: VecDeque::new(),
        })
    }

    /// Sends a segment, on the root; begins to receive it, elsewhere. Segments arrive in their order.
    ///
    /// # Errors
    /// MPI failed.
    ///
    /// # Safety
    /// As long as `keeper` is there, nobody else uses these bytes. It is there for ever if the tree is dropped earlier
    /// than all is over: MPI may still use them.
    pub unsafe fn push(&mut self, start: *mut u8, size_bytes: usize, keeper: K) -> Result<()> {
        let arriving = match self.parent {
            // SAFETY: the bytes belong to MPI until the request is complete; the caller vouches for them.
            Some(parent) => Some(unsafe { self.mpi.irecv(start, size_bytes, parent, self.leaders)? }),
            None => None,
        };
        let is_here = arriving.is_none();
        self.under_way.push_back(Segment {
            start,
            size_bytes,
            arriving,
            leaving: Vec::new(),
            keeper,
        });
        match self.under_way.back_mut() {
            Some(segment) if is_here => segment.pass_on(self.mpi, self.leaders, self.children.clone()),
            _ => Ok(()),
        }
    }

    /// Whether there is room for another segment. Passes on what has arrived, and gives back, to `take`, what is over:
    /// what is here and has left for the children.
    ///
    /// # Errors
    /// MPI failed.
    pub fn has_room(&mut self, take: &mut impl FnMut(K)) -> Result<bool> {
        self.advance(take)?;
        Ok(self.under_way.len() < SEGMENTS)
    }

    /// Whether all segments are over; otherwise as [`has_room`](Self::has_room).
    ///
    /// # Errors
    /// MPI failed.
    pub fn is_over(&mut self, take: &mut impl FnMut(K)) -> Result<bool> {
        self.advance(take)?;
        Ok(self.under_way.is_empty())
    }

    fn advance(&mut self, take: &mut impl FnMut(K)) -> Result<()> {
        for segment in &mut self.under_way {
            if let Some(request) = &mut segment.arriving {
                if !self.mpi.test(request)? {
                    break;
                }
                segment.arriving = None;
                segment.pass_on(self.mpi, self.leaders, self.children.clone())?;
            }
        }
        while let Some(first) = self.under_way.front_mut() {
            if !first.is_over(self.mpi)? {
                break;
            }
            if let Some(over) = self.under_way.pop_front() {
                take(over.keeper);
            }
        }
        Ok(())
    }
}

impl<K> Segment<K> {
    fn pass_on(&mut self, mpi: &Mpi, leaders: Comm, children: Range<usize>) -> Result<()> {
        for child in children {
            // SAFETY: the bytes are here, and nobody changes them while they leave.
            self.leaving
                .push(unsafe { mpi.issend(self.start, self.size_bytes, child, leaders)? });
        }
        Ok(())
    }

    fn is_over(&mut self, mpi: &Mpi) -> Result<bool> {
        while let Some(request) = self.leaving.last_mut() {
            if !mpi.test(request)? {
                return Ok(false);
            }
            self.leaving.pop();
        }
        Ok(self.arriving.is_none())
    }
}

impl<K> Drop for Tree<'_, K> {
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.under_way));
    }
}
