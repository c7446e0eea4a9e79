//! The bits of PCI_COMMAND, for a monitor that follows them.

use super::regs::*;

/// Is told of a change of PCI_COMMAND, from the one value to the other.
pub(super) type CommandFn = dyn Fn(Command, Command) + Send + Sync;

bitflags::bitflags! {
    /// PCI_COMMAND.
    ///
    /// ```
    /// use revocable_mmio::pci::{Bar, Command, PciDevice, Space};
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).on_command(|before, now| {
    ///     if (before ^ now).contains(Command::MASTER) {
    ///         println!("DMA and MSI: {}", now.contains(Command::MASTER));
    ///     }
    /// });
    /// nic.build()?.write(Space::Config, 4, &Command::MASTER.bits().to_le_bytes()[..])?;
    /// # Ok::<(), revocable_mmio::pci::PciError>(())
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Command: u16 {
        /// The device decodes accesses to its I/O ports.
        const IO = COMMAND_IO;
        /// The device decodes accesses to its memory.
        const MEMORY = COMMAND_MEMORY;
        /// The device may be a bus master: DMA, and message-signalled interrupts.
        const MASTER = COMMAND_MASTER;
        /// SERR# is enabled.
        const SERR = COMMAND_SERR;
        /// INTx is disabled.
        const INTX_DISABLE = COMMAND_INTX_DISABLE;
        /// All other bits, which a guest cannot change.
        const _ = !0;
    }
}
