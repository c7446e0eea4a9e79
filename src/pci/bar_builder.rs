//! The description of a base address register.

use super::config::ConfigSpace;
use super::error::PciError;
use super::regs::*;
use crate::bar::{BarBuilder, DeviceIo};
use crate::protocol::policy::OnDisabled;
use crate::region::backing::Backing;
use crate::users::Theirs;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The description of a BAR, for [`PciBuilder::bar`](super::PciBuilder::bar).
///
/// ```
/// use revocable_mmio::Backing;
/// use revocable_mmio::pci::{Bar, PciDevice, PortIo, Space};
/// use std::sync::Arc;
///
/// /// An index register, emulated.
/// struct Ports;
///
/// impl PortIo for Ports {
///     fn read(&self, offset: u64, into: &mut [u8]) {
///         into.fill(offset as u8);
///     }
///     fn write(&self, offset: u64, bytes: &[u8]) {
///         println!("{offset:#x}: {bytes:x?}");
///     }
/// }
///
/// let registers = Bar::memory(0x20000).at(0xe000_0000).exclude(0x1_0000..0x1_1000); // the MSI-X table
/// let packets = Bar::memory(2 << 20).wide().prefetchable().backing(Backing::Memfd); // BARs 1 and 2
/// let nic = PciDevice::builder(0x8086, 0x10d3).command(3).bar(0, registers).bar(1, packets);
/// let nic = nic.bar(3, Bar::io(32, Arc::new(Ports))).build()?;
/// let mut value = [0; 4];
/// nic.read(Space::Bar(0), 0x1_0000, &mut value[..])?;
/// assert_eq!(value, [0xff; 4], "excluded");
/// nic.read(Space::Bar(3), 4, &mut value[..])?;
/// assert_eq!(value, [4; 4]);
/// # Ok::<(), revocable_mmio::pci::PciError>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct Bar {
    pub(super) size: u64,
    pub(super) kind: BarKind,
    wide: bool,
    prefetchable: bool,
    /// The first address.
    address: u64,
    /// What other processes get while the memory is disabled.
    pub(super) shared: Option<OnDisabled>,
    pub(super) excluded: Vec<Range<u64>>,
    /// A setting that I/O ports do not have.
    mistake: Option<&'static str>,
}

pub(super) enum BarKind {
    Memory(Backing),
    Io(Theirs<dyn DeviceIo>),
    Areas(BarBuilder),
}

impl fmt::Debug for BarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BarKind::Memory(backing) => backing.fmt(f),
            BarKind::Io(_) => f.write_str("Io"),
            BarKind::Areas(bar) => bar.fmt(f),
        }
    }
}

impl Bar {
    /// Memory of `size` bytes, a power of two from 16 on. Mappings of a BAR smaller than a page have a whole page.
    pub fn memory(size: u64) -> Self {
        let kind = BarKind::Memory(Backing::Memfd);
        Self {
            size,
            kind,
            wide: false,
            prefetchable: false,
            address: 0,
            shared: None,
            excluded: Vec::new(),
            mistake: None,
        }
    }

    /// `size` I/O ports, a power of two from 4 on.
    pub fn io(size: u64, ports: Arc<dyn DeviceIo>) -> Self {
        Self { kind: BarKind::Io(Theirs::new(ports)), ..Self::memory(size) }
    }

    /// Memory of areas that come and go, and of holes that the device answers: see [`bar`](crate::bar). Its size is a power
    /// of two from 16 on. The device changes its state, together with all other memory; [`PciDevice::areas`](super::PciDevice::areas)
    /// inserts areas, each with a strategy and a monitor of its own.
    ///
    /// ```
    /// use revocable_mmio::Region;
    /// use revocable_mmio::pci::{Bar, PciDevice, Space};
    ///
    /// let window = revocable_mmio::bar::Bar::builder(256 << 20);
    /// let gpu = PciDevice::builder(0x1af4, 0x1050).bar(2, Bar::areas(window).wide().prefetchable()).build()?;
    /// let areas = gpu.areas(Space::Bar(2)).ok_or("a BAR of areas")?;
    /// let blob = areas.insert(0x1_0000, Region::builder(0x4000))?;
    /// assert!(!blob.region().is_enabled(), "memory is off");
    /// gpu.write(Space::Config, 4, &[2, 0][..])?;
    /// gpu.write(Space::Bar(2), 0x1_0000, &[7][..])?;
    /// assert_eq!(blob.region().owner().read::<u8>(0)?, 7);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn areas(bar: BarBuilder) -> Self {
        let size = bar.size();
        Self { kind: BarKind::Areas(bar), ..Self::memory(size) }
    }

    /// The file that is the memory. Default: a memfd of its own. I/O ports have none: with one, the device is not built.
    pub fn backing(mut self, backing: Backing) -> Self {
        match &mut self.kind {
            BarKind::Memory(of) => *of = backing,
            BarKind::Io(_) => self.mistake = Some("I/O ports have no backing: they are emulated by their PortIo"),
            BarKind::Areas(_) => self.mistake = Some("each area has a backing of its own"),
        }
        self
    }

    /// Lets other processes map it, a vfio-user client for instance. Every change of the device that revokes memory takes it
    /// from them too, and `peers` says what their accesses get meanwhile: see
    /// [`RegionBuilder::shared`](crate::RegionBuilder::shared), also for what it costs. QEMU as the client needs
    /// [`OnDisabled::AllOnes`]: with software emulation it dies of a SIGBUS.
    ///
    /// The descriptor is that of the BAR's region, and ends with its last page:
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, PciDevice, Space};
    /// use revocable_mmio::{OnDisabled, ShareAccess};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let bar = Bar::memory(0x20000).shared(OnDisabled::AllOnes);
    /// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, bar).build()?;
    /// let registers = nic.region(Space::Bar(0)).ok_or("a NIC has registers")?;
    /// let descriptor = registers.share(ShareAccess::ReadWrite)?; // for SCM_RIGHTS
    /// # drop(descriptor);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Its memory is a memfd of its own; the device's [strategy](super::PciBuilder::strategy) does not apply to it.
    ///
    /// # Errors
    /// [`PciBuilder::build`](super::PciBuilder::build) fails for I/O ports ([`PciError::Description`]) and for a
    /// [backing](Self::backing) other than [`Backing::Memfd`] ([`PciError::Build`]).
    pub fn shared(mut self, peers: OnDisabled) -> Self {
        self.shared = Some(peers);
        self
    }

    /// The address that the register holds before the guest writes it, a multiple of the size. Default: 0, which is no
    /// address: the BAR is decoded nowhere until the guest gives it one.
    pub fn at(mut self, address: u64) -> Self {
        self.address = address;
        self
    }

    /// 64 bits wide: takes the next index too.
    pub fn wide(mut self) -> Self {
        self.wide = true;
        self
    }

    /// Prefetchable.
    pub fn prefetchable(mut self) -> Self {
        self.prefetchable = true;
        self
    }

    /// Excludes a range of bytes, such as the MSI-X table, from calls: reads give all-ones and writes are dropped, whatever
    /// state the device is in. The range can still be mapped. Each call excludes one more range.
    pub fn exclude(mut self, range: Range<u64>) -> Self {
        self.excluded.push(range);
        self
    }
}

impl Bar {
    pub(super) fn describe(
        &self,
        index: usize,
        taken: &mut [bool; 6],
        config: &mut ConfigSpace,
    ) -> Result<(), PciError> {
        let wrong = |why: &str| Err(PciError::Description(format!("BAR{index}: {why}")));
        let (least, io) = match self.kind {
            BarKind::Memory(_) | BarKind::Areas(_) => (16, false),
            BarKind::Io(_) => (4, true),
        };
        if let Some(mistake) = self.mistake {
            return wrong(mistake);
        }
        let last = index.saturating_add(usize::from(self.wide));
        if last >= taken.len() || taken[index..=last].contains(&true) {
            return wrong("no such BAR (0 to 5; one that is 64 bits wide takes two), or taken twice");
        }
        if !self.size.is_power_of_two() || self.size < least || (io && self.wide) {
            return wrong("a size is a power of two, from 16 bytes or 4 ports on; I/O ports are not 64 bits wide");
        }
        if !self.wide && self.size > LARGEST_NARROW {
            return wrong("more than 2 GiB need a BAR that is 64 bits wide");
        }
        let end_of_space = if self.wide { u64::MAX } else { u64::from(u32::MAX) };
        if self.address % self.size != 0 || self.address > end_of_space - (self.size - 1) {
            return wrong("an address is a multiple of the size, and below 4 GiB for a BAR that is 32 bits wide");
        }
        if io && self.shared.is_some() {
            return wrong("I/O ports have no memory that other processes could map");
        }
        if matches!(self.kind, BarKind::Areas(_)) && (self.shared.is_some() || !self.excluded.is_empty()) {
            return wrong("a BAR of areas has traps for excluded ranges, and each area is shared by itself");
        }
        if io && !self.excluded.is_empty() {
            return wrong("I/O ports have no excluded range: their PortIo decides");
        }
        if let Some(range) = self.excluded.iter().find(|range| range.start > range.end || range.end > self.size) {
            return wrong(&format!(
                "the excluded range {range:#x?} is inverted, or not inside of its {:#x} bytes",
                self.size
            ));
        }
        taken[index..=last].fill(true);
        let mut kind = 0;
        for (bit, set) in [(BAR_IO, io), (BAR_64, self.wide), (BAR_PREFETCHABLE, self.prefetchable && !io)] {
            kind |= if set { bit } else { 0 };
        }
        config.set_bar(index, self.size, kind, self.address);
        Ok(())
    }
}

/// The size of the largest BAR or ROM that is 32 bits wide.
pub(super) const LARGEST_NARROW: u64 = 1 << 31;

/// The same bytes as ranges in order that do not touch each other, without empty ones.
pub(super) fn apart(mut ranges: Vec<Range<u64>>) -> Box<[Range<u64>]> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let touch = next.start <= before.end;
        if touch {
            before.end = before.end.max(next.end);
        }
        touch
    });
    ranges.into()
}
