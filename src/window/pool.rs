//! The pipes of this process's windows: a change takes them and gives them back.
//!
//! A user's pipes have few pages (`pipe-user-pages-soft`, pipe(7)), so they are not kept for each window. A set is there as
//! soon as there is a window; more are made when several windows change at once.

use super::part_size;
use crate::sync::inside::Mutex;
use crate::sys::SysError;
use crate::sys::identity::PerProcess;
use crate::sys::pipe::Pipes;

/// Sets that are kept.
const KEPT: usize = 2;

static POOL: PerProcess<Mutex<Vec<Pipes>>> = PerProcess::new(Mutex::default);

/// Empty pipes with room for a part, of which at most the first `len` bytes are used.
pub(super) fn take(len: usize) -> Result<Pipes, SysError> {
    let kept = POOL.get().lock_quietly().pop();
    // Other code may have closed them.
    kept.filter(|pipes| pipes.check(len).is_ok()).map_or_else(|| Pipes::new(part_size()), Ok)
}

/// Takes back a set that holds nothing.
pub(super) fn give_back(pipes: Pipes) {
    let mut pool = POOL.get().lock_quietly();
    if pool.len() < KEPT {
        pool.push(pipes);
    }
}
