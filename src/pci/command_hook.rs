//! The bits of PCI_COMMAND, for a monitor that follows them.

use super::regs::*;

/// Is told of a change of PCI_COMMAND, from the one value to the other.
pub(super) type CommandFn = dyn Fn(Command, Command) + Send + Sync;

bitflags::bitflags! {
    /// PCI_COMMAND.
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
