//! membarrier(2): a full barrier in every running thread of this process.
//!
//! UNSAFETY: one system call without memory arguments.
#![expect(unsafe_code, reason = "a system call")]

use super::SysError;
use linux_raw_sys::general::membarrier_cmd;
use nix::libc;

/// Registers this process, which the kernel requires before [`barrier`].
pub(crate) fn register() -> Result<(), SysError> {
    command(membarrier_cmd::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)
}

pub(crate) fn barrier() -> Result<(), SysError> {
    command(membarrier_cmd::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
}

fn command(command: membarrier_cmd) -> Result<(), SysError> {
    // SAFETY: no memory is passed; the effect is a barrier in this process's own threads.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command as libc::c_int, 0, 0) };
    if result == 0 { Ok(()) } else { Err(SysError::last("membarrier")) }
}
