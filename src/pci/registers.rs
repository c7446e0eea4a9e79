//! Changes of registers, which a real device gets too.

use super::config::{ConfigSpace, Told};
use super::state::Device;
use crate::sys::SysError;

impl Device {
    /// Changes registers, and then the real device's, if there is one. Returns the first error of that beside the result.
    ///
    /// A write may take a real device long (VPD, a reset), so it is made without the lock of configuration space: other threads
    /// look at registers meanwhile. `in_order` keeps other writers out.
    pub(super) fn change_registers<R>(&self, change: impl FnOnce(&mut ConfigSpace) -> R) -> (R, Result<(), SysError>) {
        let Some(real) = &self.real.0 else { return (change(&mut self.config.lock()), Ok(())) };
        let _in_order = self.in_order.lock();
        let (changed, untold) = {
            let mut config = self.config.lock();
            let changed = change(&mut config);
            (changed, std::mem::take(&mut config.untold))
        };
        let mut told = Ok(());
        for Told { at, bytes } in untold {
            told = told.and(real.write(at, &bytes));
        }
        (changed, told)
    }
}
