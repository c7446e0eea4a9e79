//! The description of a device.

use super::bar_builder::{Bar, BarKind, LARGEST_NARROW, apart};
use super::capabilities::Capabilities;
use super::command_hook::{Command, CommandFn};
use super::config::ConfigSpace;
use super::dma::DmaSpace;
use super::error::PciError;
#[cfg(feature = "vfio")]
use super::hardware::Hardware;
use super::hardware::Real;
use super::ioeventfd_table::IoEventFds;
use super::kicks::IoEventLoop;
use super::regs::*;
use super::state::{BarSlot, Device, Memory, PciDevice, Ports, ResetFn, ResetKind};
use crate::bar::BarBuilder;
use crate::monitor::Monitor;
use crate::protocol::policy::OnDisabled;
use crate::region::Region;
use crate::region::backing::Backing;
use crate::sync::inside::Mutex;
use crate::sys::page_size;
use crate::users::Theirs;
use crate::view::Strategy;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Makes a [`PciDevice`].
#[derive(Debug)]
#[must_use]
pub struct PciBuilder {
    ids: [u16; 4],
    class: u32,
    revision: u8,
    command: u16,
    name: Option<String>,
    bars: Vec<(usize, Bar)>,
    rom: Option<Vec<u8>>,
    /// The ROM of a real device.
    real_rom: Option<BarBuilder>,
    size: usize,
    capabilities: Capabilities,
    raw: Vec<(usize, Vec<u8>, Vec<u8>)>,
    virtual_function: bool,
    strategy: Option<Strategy>,
    monitor: Option<Monitor>,
    kicks: Option<IoEventLoop>,
    reset: Option<Handler<ResetFn>>,
    revoked_after_failed_reset: bool,
    dma: Option<Arc<DmaSpace>>,
    on_command: Option<Handler<CommandFn>>,
    real: Real,
}

struct Handler<F: ?Sized>(Theirs<F>);

impl<F: ?Sized> fmt::Debug for Handler<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl PciDevice {
    /// Starts describing a device.
    pub fn builder(vendor: u16, device: u16) -> PciBuilder {
        PciBuilder::new(vendor, device)
    }
}

impl PciBuilder {
    pub(super) fn new(vendor: u16, device: u16) -> Self {
        Self {
            ids: [vendor, device, 0, 0],
            class: 0xff_00_00,
            revision: 0,
            command: 0,
            name: None,
            bars: Vec::new(),
            rom: None,
            real_rom: None,
            size: 256,
            capabilities: Capabilities::default(),
            raw: Vec::new(),
            virtual_function: false,
            strategy: None,
            monitor: None,
            kicks: None,
            reset: None,
            revoked_after_failed_reset: false,
            dma: None,
            on_command: None,
            real: Real::default(),
        }
    }

    /// Subsystem vendor and device. Default: 0.
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        [self.ids[2], self.ids[3]] = [vendor, device];
        self
    }

    /// The class code (24 bits) and the revision. Default: unclassified, 0.
    pub fn class(mut self, class: u32, revision: u8) -> Self {
        (self.class, self.revision) = (class, revision);
        self
    }

    /// A name for errors and `Debug`. Default: the two ids.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The initial PCI_COMMAND. Default: 0, everything off. Bits that the guest cannot write may be set here.
    pub fn command(mut self, command: u16) -> Self {
        self.command = command;
        self
    }

    /// A BAR at this index, 0 to 5.
    pub fn bar(mut self, index: usize, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// An expansion ROM with this content. Its size is the next power of two, 2 KiB at least; the rest reads all-ones.
    pub fn rom(mut self, content: &[u8]) -> Self {
        self.rom = Some(content.to_vec());
        self
    }

    /// 4 KiB of configuration space, as PCI Express devices have. Default: 256 bytes.
    pub fn extended(mut self) -> Self {
        self.size = 4096;
        self
    }

    /// A power-management capability at `at`, with the states D0 and D3hot.
    pub fn power(mut self, at: usize) -> Self {
        self.capabilities.power = Some((at, PMC_VERSION));
        self
    }

    /// A power-management capability at `at`, with D1 and D2 as well. Memory is reachable in both.
    pub fn power_with_d1_d2(mut self, at: usize) -> Self {
        self.capabilities.power = Some((at, PMC_VERSION | PMC_D1 | PMC_D2));
        self
    }

    /// A PCI Express capability at `at`. It announces Function Level Reset if the device has a [reset](Self::on_reset).
    pub fn express(mut self, at: usize) -> Self {
        self.capabilities.express = Some(at);
        self
    }

    /// A capability of Advanced Features at `at`, by which conventional PCI devices announce Function Level Reset. It does so
    /// if the device has a [reset](Self::on_reset).
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, PciDevice, ResetKind, Space};
    ///
    /// let nic = PciDevice::builder(0x8086, 0x1209).bar(0, Bar::memory(4096)).advanced_features(0x50);
    /// let nic = nic.on_reset(|_, kind| Ok(assert_eq!(kind, ResetKind::FunctionLevel))).build()?;
    /// nic.write(Space::Config, 0x54, &[1][..])?; // the guest resets it
    /// # Ok::<(), revocable_mmio::pci::PciError>(())
    /// ```
    pub fn advanced_features(mut self, at: usize) -> Self {
        self.capabilities.advanced = Some(at);
        self
    }

    /// Bytes of configuration space, and a mask of their writable bits (bytes without a mask are read-only): for any other
    /// capability, or any register of the header.
    pub fn config(mut self, at: usize, bytes: &[u8], writable: &[u8]) -> Self {
        self.raw.push((at, bytes.to_vec(), writable.to_vec()));
        self
    }

    /// An SR-IOV virtual function: PCI_COMMAND does not disable its memory.
    pub fn virtual_function(mut self) -> Self {
        self.virtual_function = true;
        self
    }

    /// How mappings of its BARs are revoked. Default: the best strategy that works for each BAR. A [shared](Bar::shared)
    /// BAR has [`Strategy::Withdraw`] whatever is set here.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// The monitor that resolves faults of its BARs. Default: [`Monitor::shared`].
    pub fn monitor(mut self, monitor: Monitor) -> Self {
        self.monitor = Some(monitor);
        self
    }

    /// The loop that serves its ioeventfds. Default: [`IoEventLoop::shared`], started with the first ioeventfd.
    pub fn io_event_loop(mut self, kicks: IoEventLoop) -> Self {
        self.kicks = Some(kicks);
        self
    }

    /// How the function is reset. `reset` runs while nothing reaches the memory, and works through the BARs' owner's views.
    /// It cannot change the device's state, nor access the device as a caller would: such calls are refused.
    ///
    /// Without `reset` the device cannot be reset on its own.
    pub fn on_reset(mut self, reset: impl Fn(&PciDevice, ResetKind) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.reset = Some(Handler(Theirs::new(Arc::new(reset))));
        self
    }

    /// If a reset fails, the memory of a device that is in an unknown state then is disabled until a reset succeeds: for
    /// mappings and for calls, whatever PCI_COMMAND says. Default: everything is as before the reset.
    pub fn revoked_after_failed_reset(mut self) -> Self {
        self.revoked_after_failed_reset = true;
        self
    }

    /// The I/O address space through which this device, and no other, does DMA: its mappings are in the IOMMU as long as the
    /// bus-master bit of PCI_COMMAND is set. A write that clears the bit takes them out before the register shows it; a write
    /// that sets it puts them back, and has the error of one that is refused. Default: DMA is not the device's concern.
    pub fn bus_master(mut self, space: Arc<DmaSpace>) -> Self {
        self.dma = Some(space);
        self
    }

    /// Is told of every change of PCI_COMMAND that a guest makes, with the value before and after: of bus mastering, I/O
    /// space and INTx, for which a monitor has its own machinery. It runs in the thread that writes the register, when that
    /// shows the new value and what follows from it is done; a panic goes no further. It cannot write the device's registers
    /// ([`PciError::Reentrant`]).
    pub fn on_command(mut self, told: impl Fn(Command, Command) + Send + Sync + 'static) -> Self {
        self.on_command = Some(Handler(Theirs::new(Arc::new(told))));
        self
    }

    /// A real device, which gets every write to configuration space: once regions are revoked, or before they are given
    /// back. Reads come from it.
    #[cfg(feature = "vfio")]
    pub(crate) fn real(mut self, device: Arc<dyn Hardware>) -> Self {
        self.real = Real(Some(device));
        self
    }

    /// The ROM of the real device, by calls.
    #[cfg(feature = "vfio")]
    pub(crate) fn real_rom(mut self, rom: BarBuilder) -> Self {
        self.real_rom = Some(rom);
        self
    }

    /// Makes the device.
    ///
    /// # Errors
    /// The description contradicts itself, or a BAR's memory could not be made.
    pub fn build(mut self) -> Result<PciDevice, PciError> {
        let [vendor, device, ..] = self.ids;
        let name = self.name.take().unwrap_or_else(|| format!("{vendor:04x}:{device:04x}"));
        let mut config = self.header()?;
        let enabled = self.virtual_function || self.command & COMMAND_MEMORY != 0;
        if let Some(dma) = &self.dma {
            dma.set_bus_master(self.command & COMMAND_MASTER != 0)?;
        }
        let steps = config.decoded.steps(&config.decode(self.virtual_function.then_some(true)));
        config.decoded.take(&steps);
        let mut slots: [Option<BarSlot>; 6] = [const { None }; 6];
        for (index, bar) in std::mem::take(&mut self.bars) {
            let what = format!("{name} BAR{index}");
            slots[index] = Some(match bar.kind {
                BarKind::Io(ports) => BarSlot::Io(Ports { ports, size: bar.size }),
                BarKind::Areas(bar) => {
                    let bar = bar.name(what).starting(enabled).build();
                    BarSlot::Areas(bar.map_err(|e| PciError::Description(format!("BAR{index}: {e}")))?)
                }
                BarKind::Memory(backing) => {
                    let region = self.region(what, bar.size, backing, bar.shared, enabled)?;
                    BarSlot::Memory(Memory { region, size: bar.size, excluded: apart(bar.excluded) })
                }
            });
        }
        let rom = match (self.rom.take(), self.real_rom.take()) {
            (_, Some(rom)) => {
                let rom = rom.name(format!("{name} ROM")).starting(enabled).build();
                Some(BarSlot::Areas(rom.map_err(|e| PciError::Description(format!("the ROM: {e}")))?))
            }
            (Some(content), None) => {
                let size = rom_size(&content);
                let region = self.region(format!("{name} ROM"), size, Backing::Memfd, None, enabled)?;
                region.owner().write_slice(0, &content).map_err(|e| PciError::Description(e.to_string()))?;
                let excluded = apart(std::iter::once(content.len() as u64..size).collect());
                Some(BarSlot::Memory(Memory { region, size, excluded }))
            }
            (None, None) => None,
        };
        let memories = slots.iter().flatten().chain(&rom).filter_map(BarSlot::memory);
        let mut fixed: Vec<_> = memories.map(|memory| Arc::clone(&memory.region.shared)).collect();
        crate::region::group::in_order(&mut fixed);
        Ok(PciDevice {
            device: Arc::new(Device {
                name,
                config_size: config.size(),
                config: Mutex::new(config),
                turn: Default::default(),
                slots,
                rom,
                fixed,
                decoding: AtomicBool::new(enabled),
                low_power: AtomicBool::new(false),
                failed: AtomicBool::new(false),
                virtual_function: self.virtual_function,
                reset: self.reset.map(|handler| handler.0),
                revoked_after_failed_reset: self.revoked_after_failed_reset,
                dma: self.dma,
                on_command: self.on_command.map(|handler| handler.0),
                followers: Default::default(),
                begun: Default::default(),
                ioeventfds: IoEventFds::new(self.kicks),
                real: self.real,
                in_order: Mutex::default(),
            }),
        })
    }

    fn region(
        &self,
        name: String,
        size: u64,
        backing: Backing,
        shared: Option<OnDisabled>,
        enabled: bool,
    ) -> Result<Region, PciError> {
        let len = usize::try_from(size).ok().and_then(|size| size.checked_next_multiple_of(page_size()));
        let too_large = || format!("{name} of {size:#x} bytes is more than an address space can hold");
        let len = len.ok_or_else(|| PciError::Description(too_large()))?;
        let mut builder = Region::builder(len).name(name).backing(backing);
        if let Some(strategy) = self.strategy {
            builder = builder.strategy(strategy);
        }
        if let Some(real) = self.real.0.clone() {
            builder = builder.memory_enabled(move |device| real.is_memory_enabled(device));
        }
        if let Some(peers) = shared {
            builder = builder.shared(peers);
        }
        if let Some(monitor) = &self.monitor {
            builder = builder.monitor(monitor.clone());
        }
        Ok(if enabled { builder.build() } else { builder.disabled().build() }?)
    }

    /// The initial configuration space.
    fn header(&self) -> Result<ConfigSpace, PciError> {
        let mut config = ConfigSpace::new(self.size);
        config.is_real = self.real.0.is_some();
        let [vendor, device, subsystem_vendor, subsystem] = self.ids.map(u16::to_le_bytes);
        config.set(VENDOR_ID, &vendor);
        config.set(DEVICE_ID, &device);
        config.set(SUBSYSTEM_VENDOR_ID, &subsystem_vendor);
        config.set(SUBSYSTEM_ID, &subsystem);
        config.set(REVISION_ID, &[self.revision]);
        if self.class >> 24 != 0 {
            return Err(PciError::Description(format!("class {:#x} has more than 24 bits", self.class)));
        }
        config.set(CLASS_CODE, &self.class.to_le_bytes()[..3]);
        // A virtual function's bit reads as set: its memory is on.
        let command = if self.virtual_function { self.command | COMMAND_MEMORY } else { self.command };
        config.set(COMMAND, &command.to_le_bytes());
        config.set(INTERRUPT_PIN, &[1]);
        let mut taken = [false; 6];
        for (index, bar) in &self.bars {
            bar.describe(*index, &mut taken, &mut config)?;
        }
        let rom = self.rom.as_deref().map(rom_size).or(self.real_rom.as_ref().map(BarBuilder::size));
        if let Some(size) = rom {
            if size > LARGEST_NARROW || !size.is_power_of_two() {
                return Err(PciError::Description(format!("a ROM of {size:#x} bytes: a power of two, 2 GiB at most")));
            }
            config.set_rom(size);
        }
        self.capabilities.describe(&mut config, self.reset.is_some())?;
        for (at, bytes, writable) in &self.raw {
            let len = bytes.len().max(writable.len());
            if at.checked_add(len).is_none_or(|end| end > self.size) {
                let size = self.size;
                let why = format!("{len} bytes at {at:#x} are not inside the {size} bytes of configuration space");
                return Err(PciError::Description(why));
            }
            config.set(*at, bytes);
            config.allow(*at, writable);
        }
        config.read_bars();
        Ok(config)
    }
}

fn rom_size(content: &[u8]) -> u64 {
    (content.len() as u64).next_power_of_two().max(2048)
}
