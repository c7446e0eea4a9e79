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

#[cfg(all(test, revocable_model))]
mod model;
mod peers;
mod pool;
mod vault;
mod worker;

use crate::sync::inside::Mutex;
use crate::sys::file;
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Sealed};
use crate::sys::pipe::Pipes;
use crate::sys::{SysError, left_out, page_size};
use nix::errno::Errno;
use std::ffi::CStr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
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
    file: Arc<KnownFile>,
    vault: Vault,
    len: usize,
    emptied: Emptied,
    /// Locked while the content is moved.
    content: Mutex<Option<Held>>,
    /// From here on the content is in the vault, and the window has nothing of it; before that it is in the window. Written
    /// by the holder of `content` only.
    emptied_from: AtomicUsize,
    /// Bytes of content that a peer had cut off, or that were in a pipe that other code has closed.
    lost: AtomicUsize,
    /// For a window that peers may write to: they can hold its file's lock.
    worker: OnceLock<Worker>,
    /// The emptying under way is to be undone.
    abandoned: AtomicBool,
}

/// A part of the content that is in pipes alone, since copying it into the vault has failed.
#[derive(Debug)]
struct Held {
    pipes: Pipes,
    part: Range<usize>,
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
        self.emptied == Emptied::Short
    }

    /// A window of `len` zero bytes; with the names of the window and of the vault. `len` is a multiple of the page size.
    pub(crate) fn make([name, vault]: [&CStr; 2], len: usize, emptied: Emptied) -> Result<Self, SysError> {
        let fd = map::memfd(name, len as u64, 0)?;
        map::seal(fd.as_fd(), if emptied == Emptied::Ones { Sealed::Size } else { Sealed::Nothing })?;
        file::keep_from_other_users(fd.as_fd())?;
        if !left_out("writing the window's pages") {
            file::fill_with_zeroes(fd.as_fd(), 0, len)?;
        }
        let vault = Vault::make(vault, len)?;
        pool::give_back(pool::take(len)?);
        Ok(Self {
            file: Arc::new(KnownFile::new(fd)),
            vault,
            len,
            emptied,
            content: Mutex::new(None),
            emptied_from: AtomicUsize::new(len),
            lost: AtomicUsize::new(0),
            worker: OnceLock::new(),
            abandoned: AtomicBool::new(false),
        })
    }

    /// The file that mappings map.
    pub(crate) fn file(&self) -> &Arc<KnownFile> {
        &self.file
    }

    /// The window's file, and the vault's, if both are there: a descriptor that other code has closed is noticed before
    /// anything changes.
    pub(crate) fn check(&self) -> Result<[&KnownFile; 2], SysError> {
        self.file.get()?;
        self.vault.file().get()?;
        Ok([&self.file, self.vault.file()])
    }

    fn emptied_from(&self) -> usize {
        self.emptied_from.load(Ordering::Acquire)
    }

    /// True if the window has all of the content.
    pub(crate) fn is_full(&self) -> bool {
        self.emptied_from() == self.len
    }

    /// True if the window has nothing of the content.
    pub(crate) fn is_empty(&self) -> bool {
        self.emptied_from() == 0
    }

    /// The bytes of content that were lost since the last call: a peer had cut them off. They are zeroes now.
    pub(crate) fn take_lost(&self) -> usize {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// A descriptor of the window for another process: an open file of its own, so that no flag or lock that is put on it
    /// concerns the region's.
    pub(crate) fn reopen(&self, writable: bool) -> Result<OwnedFd, SysError> {
        if writable && self.worker.get().is_none() {
            // Another thread may be faster.
            let _ = self.worker.set(Worker::start()?);
        }
        file::reopen(self.file.get()?, writable)
    }

    /// Waits until no peer is in a system call that holds the file's lock; then it most likely can be emptied at once.
    /// Returns false if that takes longer than `patience`.
    pub(crate) fn wait_for_peers(self: &Arc<Self>, patience: Option<Instant>) -> bool {
        let Some(worker) = self.worker.get() else { return true };
        let window = Arc::clone(self);
        // It changes nothing, and needs the lock.
        let look = move || window.file.get().and_then(|file| file::punch(file, window.len, page_size()));
        worker.run(look, || (), || (), patience, || None).is_some()
    }

    /// The ids of other processes that have the file open for writing, as far as this process may see that.
    pub(crate) fn peers(&self) -> Vec<i32> {
        let file = self.file.get().ok().and_then(|file| file.try_clone_to_owned().ok()).map(std::fs::File::from);
        file.and_then(|file| file.metadata().ok()).map(|file| peers::that_may_write(&file)).unwrap_or_default()
    }

    /// A peer's system call has kept an emptying waiting that was given up, and still does.
    pub(crate) fn is_held(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
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
        let mut reached = self.emptied_from();
        let emptied = worker.run(
            move || run.empty_here(),
            move || stop.abandoned.store(true, Ordering::Release),
            move || {
                let _ = undo.fill_all(&mut undo.content.lock_quietly());
                undo.abandoned.store(false, Ordering::Release);
            },
            Instant::now().checked_add(GRACE),
            || {
                let before = std::mem::replace(&mut reached, self.emptied_from());
                if before == reached { None } else { Instant::now().checked_add(GRACE) }
            },
        );
        emptied.unwrap_or(Err(SysError::new("ftruncate", Errno::EBUSY)))
    }

    fn empty_here(&self) -> Result<(), SysError> {
        let mut content = self.content.lock_quietly();
        let emptied = self.empty_all(&mut content);
        if emptied.is_err() {
            let _ = self.fill_all(&mut content);
        }
        emptied
    }

    /// Makes the content reachable by the window again. On an error the window is empty as before; if that cannot be had
    /// either, the next try goes on.
    pub(crate) fn fill(&self) -> Result<(), SysError> {
        // Not waited for if the worker has it: a peer is in a system call that may never end.
        let mut content = self.content.try_lock().ok_or(SysError::new("pwrite", Errno::EBUSY))?;
        let filled = self.fill_all(&mut content);
        if filled.is_err() {
            // Stores that were made to the filled part meanwhile are kept.
            let _ = self.empty_all(&mut content);
        }
        filled
    }

    /// Fills what a failed change has left empty in the window of an enabled region.
    pub(crate) fn heal(&self) -> Result<(), SysError> {
        if self.is_full() {
            return Ok(());
        }
        let mut content = self.content.try_lock().ok_or(SysError::new("pwrite", Errno::EBUSY))?;
        self.fill_all(&mut content)
    }

    /// Empties the window for good, whatever becomes of its content.
    pub(crate) fn discard(&self) -> Result<(), SysError> {
        self.drop_part(self.file.get()?, 0, self.len)
    }

    /// Empties parts from the end backwards, since a file is shortened at its end.
    fn empty_all(&self, held: &mut Option<Held>) -> Result<(), SysError> {
        let file = self.ready(held)?;
        let pipes = pool::take(self.len)?;
        while !self.is_empty() {
            if self.is_held() {
                pool::give_back(pipes);
                return Err(SysError::new("ftruncate", Errno::EBUSY));
            }
            let end = self.emptied_from();
            let start = (end - 1) / part_size() * part_size();
            let len = match self.hold_and_drop(&pipes, file, start..end) {
                Ok(len) => len,
                Err(e) => {
                    pipes.clear();
                    pool::give_back(pipes);
                    return Err(e);
                }
            };
            // Now the pipes alone have the content.
            self.emptied_from.store(start, Ordering::Release);
            self.lost.fetch_add(end - start - len, Ordering::Relaxed);
            let mut part = start..start + len;
            if let Err(e) = self.keep(&pipes, &mut part) {
                *held = Some(Held { pipes, part });
                return Err(e);
            }
        }
        pool::give_back(pipes);
        Ok(())
    }

    /// Takes a part out of the window, and returns how many bytes of it the pipes hold: fewer than it has if a peer had cut
    /// the rest off, which is zeroes in the vault. On an error the content is where it was.
    fn hold_and_drop(&self, pipes: &Pipes, file: BorrowedFd<'_>, part: Range<usize>) -> Result<usize, SysError> {
        if left_out("holding before emptying") {
            self.drop_part(file, part.start, part.len())?;
        }
        let len = pipes.hold(file, part.start, part.len())?;
        if left_out("emptying before copying") {
            self.copy(pipes, &mut (part.start..part.start + len))?;
        }
        self.vault.clear(part.start + len..part.end)?;
        self.drop_part(file, part.start, part.len())?;
        Ok(len)
    }

    /// Copies what the pipes alone have into the vault; `part` is what is left of it.
    fn keep(&self, pipes: &Pipes, part: &mut Range<usize>) -> Result<(), SysError> {
        if left_out("emptying before copying") { Ok(()) } else { self.copy(pipes, part) }
    }

    fn copy(&self, pipes: &Pipes, part: &mut Range<usize>) -> Result<(), SysError> {
        while part.start < part.end {
            part.start += self.vault.take(pipes, part.clone())?;
        }
        Ok(())
    }

    /// Copies parts from the vault into the window, in order. A page has its content before the size covers it, so no
    /// zeroes are ever read.
    fn fill_all(&self, held: &mut Option<Held>) -> Result<(), SysError> {
        let file = self.ready(held)?;
        while !self.is_full() {
            let at = self.emptied_from();
            let end = self.len.min(at + part_size());
            self.vault.write_to(file, at..end).inspect_err(|_| {
                // The vault still has the part.
                let _ = self.drop_part(file, at, end - at);
            })?;
            self.emptied_from.store(end, Ordering::Release);
        }
        // A peer may have made it longer meanwhile.
        file::truncate_if_longer(file, self.len)
    }

    /// The window's file, with no content anywhere but in it and in the vault.
    fn ready(&self, held: &mut Option<Held>) -> Result<BorrowedFd<'_>, SysError> {
        let file = self.file.get()?;
        if let Some(Held { pipes, part }) = held {
            match pipes.check(self.len) {
                Ok(()) => self.keep(pipes, part)?,
                // Other code has closed them: what they alone had is lost.
                Err(_) => {
                    self.vault.clear(part.clone())?;
                    self.lost.fetch_add(part.len(), Ordering::Relaxed);
                }
            }
            *held = None;
        }
        Ok(file)
    }

    /// Takes a part out of the window, whatever becomes of its content.
    fn drop_part(&self, file: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), SysError> {
        let left_out = left_out("emptying");
        match self.emptied {
            Emptied::Short if left_out => Ok(()),
            Emptied::Short => file::truncate(file, start),
            Emptied::Ones => {
                // A huge page goes as a whole, beyond the file's end too.
                let whole = if start + len == self.len { len.next_multiple_of(part_size()) } else { len };
                if !left_out {
                    file::punch(file, start, whole)?;
                }
                // Without memory for the ones the part reads as zeroes: just as unreachable.
                let _ = file::fill_with_ones(file, start, len);
                Ok(())
            }
        }
    }
}
