//! Windows: the file that a region's mappings and other processes map, and the private file that keeps the content while
//! nothing may reach it.
//!
//! The kernel unmaps the pages that leave a file from every mapping of every process, whatever that process is doing. So a
//! window is taken away from all of them by emptying it:
//!
//! | | window | a pipe | vault |
//! |---|---|---|---|
//! | filled | the content | | as it was the last time |
//! | [`Window::empty`], for each part | the content | holds the same pages | |
//! | | emptied: unmapped everywhere | the pages, with every store that was made | |
//! | | | | the content, copied from the pages |
//! | [`Window::fill`], for each part | a copy of the content | | the content |
//!
//! A store is made to the page that a mapping still has, and then it is in the pipe's page too, or it faults. Copying first
//! and emptying after that would lose the stores in between.
//!
//! All pages of both files exist from the start, and those of the window have been written: the kernel holds a page that
//! was never written as zeroes instead of as itself. A peer with a descriptor for writing can truncate the window, grow it,
//! punch holes or write at any moment. That costs content, and nothing else: the vault is never shared.
//!
//! Such a peer can also hold the file's lock (`inode_lock`), which emptying needs, for as long as a write(2) of its takes
//! whose source never arrives; nothing can interrupt a wait for that lock. So a window that was shared for writing is
//! emptied by a [`Worker`], a thread that its changer can leave behind.

mod files;
#[cfg(all(test, revocable_model))]
mod model;
mod peers;
mod pool;
mod transfer;
mod vault;
mod worker;

use crate::sync::inside::{Mutex, MutexGuard};
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Sealed};
use crate::sys::{SysError, file, left_out, page_size};
use files::RealFiles;
use nix::errno::Errno;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use transfer::{Files, Rest, Transfer};
use vault::Vault;
use worker::Worker;

/// How much is emptied at once, at multiples of it: the largest page that a file can have in its page cache, one of the
/// second level of page tables. When a part of such a page leaves the file, the kernel overwrites that part with zeroes
/// (`truncate_inode_partial_folio`), in the page that a pipe holds too.
fn part_size() -> usize {
    page_size() * (page_size() / 8)
}

/// How long an emptying under way waits for a peer's system call, if no part is emptied meanwhile.
const GRACE: Duration = Duration::from_millis(100);

/// What a peer's access gets while the window is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Emptied {
    /// SIGBUS or EFAULT, as beyond the end of any file.
    Short,
    /// All-ones; stores go nowhere.
    Ones,
}

/// A window and its vault.
#[derive(Debug)]
pub(crate) struct Window {
    transfer: Transfer<RealFiles>,
    /// Locked while the content is moved.
    content: Mutex<Rest<RealFiles>>,
    /// For a window that peers may write to: they can hold its file's lock.
    worker: OnceLock<Worker>,
}

/// Makes what the changes of the process's first windows need, and keeps it.
pub(crate) fn prepare() -> Result<(), SysError> {
    pool::give_back(pool::take(part_size())?);
    Ok(())
}

impl Window {
    /// True if a process that has the file open for writing can cut it off: it is not sealed.
    #[cfg_attr(not(feature = "vm-memory"), expect(dead_code, reason = "only vm-memory's accesses do not recover"))]
    pub(crate) fn can_be_cut(&self) -> bool {
        self.transfer.files.emptied == Emptied::Short
    }

    /// A window of `len` zero bytes; with the names of the window and of the vault. `len` is a multiple of the page size.
    pub(crate) fn make([name, vault]: [&CStr; 2], len: usize, emptied: Emptied) -> Result<Self, SysError> {
        let fd = map::memfd(name, len as u64, 0)?;
        map::seal(fd.as_fd(), if emptied == Emptied::Ones { Sealed::Size } else { Sealed::Nothing })?;
        file::keep_from_other_users(fd.as_fd())?;
        if !left_out("writing the window's pages") {
            file::fill_with_zeroes(fd.as_fd(), 0, len)?;
        }
        let files = RealFiles { file: Arc::new(KnownFile::new(fd)), vault: Vault::make(vault, len)?, len, emptied };
        pool::give_back(pool::take(len)?);
        let transfer = Transfer::new(files, len);
        Ok(Self { transfer, content: Mutex::new(None), worker: OnceLock::new() })
    }

    /// The file that mappings map.
    pub(crate) fn file(&self) -> &Arc<KnownFile> {
        &self.transfer.files.file
    }

    /// The window's file, and the vault's, if both are there: a descriptor that other code has closed is noticed before
    /// anything changes.
    pub(crate) fn check(&self) -> Result<[&KnownFile; 2], SysError> {
        let [file, vault] = [self.file(), self.transfer.files.vault.file()];
        file.get()?;
        vault.get()?;
        Ok([file, vault])
    }

    /// True if the window has all of the content.
    pub(crate) fn is_full(&self) -> bool {
        self.transfer.is_full()
    }

    /// True if the window has nothing of the content.
    pub(crate) fn is_empty(&self) -> bool {
        self.transfer.is_empty()
    }

    /// The bytes of content that were lost since the last call: a peer had cut them off. They are zeroes now.
    pub(crate) fn take_lost(&self) -> usize {
        self.transfer.take_lost()
    }

    /// A descriptor of the window for another process: an open file of its own, so that no flag or lock that is put on it
    /// concerns the region's.
    pub(crate) fn reopen(&self, writable: bool) -> Result<OwnedFd, SysError> {
        if writable && self.worker.get().is_none() {
            // Another thread may be faster.
            let _ = self.worker.set(Worker::start()?);
            self.transfer.has_peers();
        }
        file::reopen(self.file().get()?, writable)
    }

    /// Waits until no peer is in a system call that holds the file's lock; then it most likely can be emptied at once.
    /// Returns false if that takes longer than `patience`.
    pub(crate) fn wait_for_peers(self: &Arc<Self>, patience: Option<Instant>) -> bool {
        let Some(worker) = self.worker.get() else { return true };
        let window = Arc::clone(self);
        let look = move || window.file().get().and_then(|file| file::wait_for_lock(file, window.transfer.len));
        worker.run(look, || (), || (), patience, || None).is_some()
    }

    /// The ids of other processes that have the file open for writing, as far as this process may see that.
    pub(crate) fn peers(&self) -> Vec<i32> {
        let file = self.file().get().ok().and_then(|file| file.try_clone_to_owned().ok()).map(std::fs::File::from);
        file.and_then(|file| file.metadata().ok()).map(|file| peers::that_may_write(&file)).unwrap_or_default()
    }

    /// A peer's system call has kept an emptying waiting that was given up, and still does.
    pub(crate) fn is_held(&self) -> bool {
        self.transfer.is_abandoned()
    }

    /// When it returns, nothing reaches the content by the window, and the vault has it, with every store to it that had
    /// returned. On an error the window is as before; if that cannot be had either, the next try goes on.
    ///
    /// # Errors
    /// EBUSY: a peer is in a system call that holds the file's lock. Until that ends the window is as before. Then the
    /// emptying that was begun is done and undone: for a moment the window is empty.
    pub(crate) fn empty(self: &Arc<Self>) -> Result<(), SysError> {
        let Some(worker) = self.worker.get() else { return self.empty_here() };
        let [run, stop, undo] = [(); 3].map(|()| Arc::clone(self));
        let mut reached = self.transfer.emptied_from();
        let emptied = worker.run(
            move || run.empty_here(),
            move || stop.transfer.abandon(true),
            move || {
                let _ = undo.transfer.fill_all(&mut undo.content.lock_quietly());
                undo.transfer.abandon(false);
            },
            Instant::now().checked_add(GRACE),
            || {
                let before = std::mem::replace(&mut reached, self.transfer.emptied_from());
                if before == reached { None } else { Instant::now().checked_add(GRACE) }
            },
        );
        emptied.unwrap_or(Err(SysError::new("ftruncate", Errno::EBUSY)))
    }

    fn empty_here(&self) -> Result<(), SysError> {
        self.transfer.empty(&mut self.content.lock_quietly())
    }

    /// Makes the content reachable by the window again. On an error the window is empty as before; if that cannot be had
    /// either, the next try goes on.
    pub(crate) fn fill(&self) -> Result<(), SysError> {
        self.transfer.fill(&mut *self.moving()?)
    }

    /// Not waited for if the worker has it: a peer is in a system call that may never end.
    fn moving(&self) -> Result<MutexGuard<'_, Rest<RealFiles>>, SysError> {
        self.content.try_lock().ok_or(SysError::new("pwrite", Errno::EBUSY))
    }

    /// Fills what a failed change has left empty in the window of an enabled region.
    pub(crate) fn heal(&self) -> Result<(), SysError> {
        if self.is_full() { Ok(()) } else { self.transfer.fill_all(&mut *self.moving()?) }
    }

    /// Empties the window for good, whatever becomes of its content.
    pub(crate) fn discard(&self) -> Result<(), SysError> {
        self.transfer.files.check()?;
        self.transfer.drop_part(0..self.transfer.len)
    }
}
