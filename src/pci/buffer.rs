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
///
/// ```
/// use revocable_mmio::pci::{Bar, BufferFault, PciDevice, Sink, Source, Space};
///
/// /// Memory of another process, of which only the first half is there.
/// struct Remote([u8; 8]);
///
/// impl Sink for Remote {
///     fn len(&self) -> usize {
///         self.0.len()
///     }
///     fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), BufferFault> {
///         self.0[..4].get_mut(at..at + bytes.len()).ok_or("not there")?.copy_from_slice(bytes);
///         Ok(())
///     }
/// }
///
/// impl Source for Remote {
///     fn len(&self) -> usize {
///         self.0.len()
///     }
///     fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
///         into.copy_from_slice(self.0[..4].get(at..at + into.len()).ok_or("not there")?);
///         Ok(())
///     }
/// }
///
/// let mut remote = Remote([7; 8]);
/// assert!(!Sink::is_empty(&remote) && !Source::is_empty(&remote));
/// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
/// let error = nic.read(Space::Bar(0), 0, &mut remote).unwrap_err();
/// assert_eq!(error.errno(), 14); // EFAULT
/// # Ok::<(), revocable_mmio::pci::PciError>(())
/// ```
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
///
/// ```
/// use revocable_mmio::MapOptions;
/// use revocable_mmio::pci::{Bar, MappingPart, PciDevice, Space};
///
/// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
/// let mapping = nic.map(Space::Bar(0), MapOptions::new())?;
/// mapping.write(0, 7_u64)?;
/// nic.write(Space::Bar(0), 0x1000, &MappingPart::new(&mapping, 0..8))?;
/// assert_eq!(mapping.read::<u64>(0x1000)?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
