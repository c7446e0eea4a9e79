//! Writes to configuration space that give up, or are completed later.

use super::begun::{BegunWrite, Completion, Job};
use super::config::piece;
use super::config_access::Writer;
use super::error::PciError;
use super::state::{Device, PciDevice};
use crate::sync::wait::Patience;
use crate::sys::thread;
use crate::users::guarded;
use std::io;
use std::sync::Arc;
use std::time::Duration;

impl PciDevice {
    /// Begins a write to configuration space, and never waits: for a vCPU's thread. A write that affects neither memory nor
    /// places is made at once, except one to a real device, which may be slow. Any other is made by a thread of the device's,
    /// whatever holds it up: guards, a reset, an IOMMU. Writes that are begun are made in their order, with nothing overtaken.
    ///
    /// Until the write is [done](BegunWrite::is_done) the register shows the old value. A guest that clears the memory bit
    /// may rely on it as soon as its store has returned, so a monitor lets the vCPU go on once the write is done, and may
    /// run it for other things (interrupts, a kick) meanwhile.
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, PciDevice};
    /// use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
    /// let write = nic.begin_write(4, &[0, 0])?; // PCI_COMMAND: memory off
    /// // A monitor polls the descriptor of `write` in its event loop.
    /// assert!(write.wait_timeout(Duration::from_secs(5)));
    /// write.result().ok_or("it is done")??;
    /// assert_eq!(nic.command(), 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Nothing was begun: the bytes are not in configuration space (EFAULT), there is no descriptor or thread to be had, or
    /// this is a forked child. Errors of the write itself are its [result](BegunWrite::result).
    pub fn begin_write(&self, offset: u64, bytes: &[u8]) -> Result<BegunWrite, PciError> {
        let device = &self.device;
        if !device.begun.are_of_this_process() {
            return Err(PciError::Forked);
        }
        let at = device.inside(offset, bytes.len())?;
        let completion = Completion::new()?;
        let begun = BegunWrite::new(&completion);
        if device.real.0.is_none() && device.begun.is_empty() && device.write_if_quiet(at, bytes) {
            completion.complete(Ok(()));
            return Ok(begun);
        }
        let job = Job { at: offset, bytes: bytes.to_vec(), completion };
        let worker = Arc::clone(device);
        device.begun.push(job, || thread::spawn("mmio-config", move || worker.make_begun_writes()).map(drop))?;
        Ok(begun)
    }

    /// A write to configuration space that gives up after `patience`, if it takes memory away, resets the function or makes
    /// the device a bus master, and guards, pins or other changes hold that up.
    ///
    /// Users' code that it runs (a reset, notifiers, maps, an IOMMU) is not interrupted: for a thread that must not wait for
    /// that either, there is [`begin_write`](Self::begin_write).
    ///
    /// ```
    /// use revocable_mmio::MapOptions;
    /// use revocable_mmio::pci::{Bar, PciDevice, Space};
    /// use std::time::Duration;
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000)).build()?;
    /// let mapping = nic.map(Space::Bar(0), MapOptions::new())?;
    /// let bar = nic.region(Space::Bar(0)).ok_or("memory")?;
    /// let pin = bar.pin(0..4096, revocable_mmio::fault::FaultFlags::NOWAIT)?;
    /// let busy = nic.write_timeout(4, &[0, 0], Duration::from_millis(1)).unwrap_err();
    /// assert_eq!(busy.errno(), 16); // EBUSY: memory is on, as before
    /// drop(pin);
    /// nic.write_timeout(4, &[0, 0], Duration::from_secs(5))?;
    /// assert!(mapping.read::<u32>(0).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`write`](Self::write). If it gave up, EBUSY: the register is as before, and so is the memory.
    pub fn write_timeout(&self, offset: u64, bytes: &[u8], patience: Duration) -> Result<(), PciError> {
        self.device.write_config(offset, bytes, Patience::within(patience), Writer::Caller).map(drop)
    }
}

impl Device {
    /// Makes a write that has no effect but on the bytes; otherwise does nothing, and returns false. For a device that is not
    /// real.
    fn write_if_quiet(&self, at: usize, bytes: &[u8]) -> bool {
        let mut config = self.config.lock();
        let mut aside = config.aside();
        for (at, part) in pieces(at, bytes) {
            if !self.is_quiet(&aside, at, part) {
                return false;
            }
            aside.write(at, part);
        }
        pieces(at, bytes).for_each(|(at, part)| config.write(at, part));
        true
    }

    fn make_begun_writes(self: Arc<Self>) {
        while let Some(Job { at, bytes, completion }) = self.begun.next() {
            let made = guarded(|| self.write_config(at, &bytes[..], Patience::Forever, Writer::Thread).map(drop));
            // A reset is the only one of users' calls whose panic passes on.
            let panicked =
                || Err(PciError::Reset { source: io::Error::other("it panicked"), now: self.after_failure() });
            {
                let mut config = self.config.lock();
                config.made_of_begun = 0;
                self.begun.made();
            }
            completion.complete(made.unwrap_or_else(panicked));
        }
    }
}

/// The pieces in which the driver makes a write, each with its place.
fn pieces(at: usize, bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let from = done;
        done += if from < bytes.len() { piece(at + from, bytes.len() - from) } else { return None };
        Some((at + from, &bytes[from..done]))
    })
}
