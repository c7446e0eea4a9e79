//! Callers' buffers: the source or the destination of a transfer on a caller's behalf.
//!
//! A buffer may itself be revocable memory, even of the same device: a copy to or from it may wait for the memory lock, or
//! fail. So no lock is held while a buffer is touched (vfio-pci's own deadlock, commit bc93b9ae0151).

use crate::region::access_error::CopyError;
use crate::region::mapping::Mapping;
use std::error::Error;
use std::ops::Range;

/// The error of a caller's buffer.
pub type BufferFault = Box<dyn Error + Send + Sync>;

/// The destination of a read on a caller's behalf (`copy_to_user`).
pub trait Sink {
    /// How many bytes it takes.
    fn len(&self) -> usize;

    /// True if it takes none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stores `bytes` from byte `at` on. They fit.
    ///
    /// # Errors
    /// The transfer ends with EFAULT.
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufferFault>;
}

/// The source of a write on a caller's behalf (`copy_from_user`).
pub trait Source {
    /// How many bytes it has.
    fn len(&self) -> usize;

    /// True if it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` from byte `at` on. There are as many.
    ///
    /// # Errors
    /// The transfer ends with EFAULT.
    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault>;
}

impl Sink for [u8] {
    #[inline]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline]
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufferFault> {
        self[at..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Source for [u8] {
    #[inline]
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    #[inline]
    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
        into.copy_from_slice(&self[at..][..into.len()]);
        Ok(())
    }
}

/// A part of a mapping as a caller's buffer, for a transfer between a BAR and a mapping, even of the same BAR.
#[derive(Clone, Debug)]
pub struct MappingPart<'a> {
    mapping: &'a Mapping,
    range: Range<usize>,
}

impl<'a> MappingPart<'a> {
    /// The bytes of `range`, as offsets in the mapping. The transfer fails beyond the mapping's end.
    pub fn new(mapping: &'a Mapping, range: Range<usize>) -> Self {
        Self { mapping, range }
    }
}

fn fault(error: CopyError) -> BufferFault {
    Box::new(error)
}

impl Sink for MappingPart<'_> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufferFault> {
        self.mapping.write_slice(self.range.start + at, bytes).map_err(fault)
    }
}

impl Source for MappingPart<'_> {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
        self.mapping.read_slice(self.range.start + at, into).map_err(fault)
    }
}
