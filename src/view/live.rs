//! Live: the region's file is mapped in the range.

use super::rights::Part;
use super::{Content, Server, Standing, Strategy, View, alignment, ranges, release};
use crate::sys::known::KnownFile;
use crate::sys::map::{self, Advice, Prot};
use crate::sys::uffd::Uffd;
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;

/// The memory for a range, at another address.
pub(crate) struct Prepared(AddrRange);

impl Drop for Prepared {
    fn drop(&mut self) {
        release(self.0);
    }
}

impl View {
    /// Each part is made at another address, with all its properties, and moved over the range in one step: neither a fork
    /// nor a fault nor another mmap ever sees it half-made.
    pub(super) fn map_live(&self, standing: &mut Standing, file: Option<&KnownFile>) -> Result<(), SysError> {
        let file = file.ok_or(SysError::new("mmap", Errno::EBADF))?;
        // Checked before anything is mapped: a range whose faults cannot be resolved must not be live even for a moment.
        let uffd = self.serving()?;
        let mut mapped = 0;
        let moved =
            self.parts().into_iter().try_for_each(|part| self.map_part(standing, part, file).inspect(|()| mapped += 1));
        // Until the range is registered the kernel fills in pages, which is fine: the memory is being given back.
        let served = moved.and_then(|()| uffd.map_or(Ok(()), |uffd| uffd.register(self.range, true)));
        match served {
            Ok(()) => standing.content = Content::Live,
            // A part is live, or its faults would not be resolved: refuse again.
            Err(_) if mapped > 0 => drop(self.refuse_somehow(standing)),
            Err(_) => {}
        }
        served
    }

    /// Maps `file` for the range at another address: whatever [`restore_from`](Self::restore_from) needs is had now. For a
    /// range with the same rights throughout.
    pub(crate) fn prepare_file(&self, file: &KnownFile) -> Result<Prepared, SysError> {
        self.staged(self.range, file, self.spec.prot).map(Prepared)
    }

    /// Makes the prepared memory of `file` reachable.
    #[expect(unsafe_code, reason = "UNSAFETY: moves between ranges that only this view knows, or owns")]
    pub(crate) fn restore_from(&self, prepared: Prepared, file: &KnownFile) -> Result<(), SysError> {
        let mut standing = self.standing()?;
        let moved = self.replace(&mut standing, self.range, || {
            // SAFETY: as in `map_part`.
            unsafe { map::move_over(prepared.0, self.range) }
        });
        if moved.is_ok() {
            // Its address is free, and may be another thread's by now.
            std::mem::forget(prepared);
            standing.content = Content::Live;
            return Ok(());
        }
        drop(standing);
        // At the limit of mappings the kernel moves none. Without the prepared one there is room for one in its place.
        self.restore_instead(prepared, file)
    }

    /// Gives up what was prepared, and maps `file`.
    pub(crate) fn restore_instead(&self, prepared: Prepared, file: &KnownFile) -> Result<(), SysError> {
        drop(prepared);
        if self.restore(Some(file)).is_ok() {
            return Ok(());
        }
        let mut standing = self.standing()?;
        let mapped = self.map_in_place(&mut standing, file);
        standing.content = if mapped.is_ok() { Content::Live } else { Content::Unsettled };
        mapped
    }

    /// In steps: meanwhile an access in the range gets a signal.
    #[expect(unsafe_code, reason = "UNSAFETY: replaces the mapping in the view's own range")]
    fn map_in_place(&self, standing: &mut Standing, file: &KnownFile) -> Result<(), SysError> {
        self.replace(standing, self.range, || {
            // SAFETY: the view's own range, whose content is being replaced.
            unsafe { map::map_shared(self.range, file.get()?, self.spec.file_offset, Prot::None) }?;
            self.give_properties(self.range, self.spec.prot)
        })
    }

    /// A part of the range, mapped at another address.
    fn staged(&self, part: AddrRange, file: &KnownFile, prot: Prot) -> Result<AddrRange, SysError> {
        let offset = self.spec.file_offset + (part.start - self.range.start) as u64;
        let staging = ranges::map_file(part.len, alignment(part.len).max(self.spec.page), file.get()?, offset)?;
        self.give_properties(staging, prot).inspect_err(|_| release(staging))?;
        Ok(staging)
    }

    #[expect(unsafe_code, reason = "UNSAFETY: maps, moves and unmaps ranges that only this view knows, or owns")]
    fn map_part(&self, standing: &mut Standing, part: Part, file: &KnownFile) -> Result<(), SysError> {
        let staging = self.staged(part.range, file, part.prot)?;
        self.replace(standing, part.range, || {
            // SAFETY: the staging was made just now and is one mapping; the range is the view's own, and nothing relies on
            // its content.
            unsafe { map::move_over(staging, part.range) }
        })
        .inspect_err(|_| release(staging))
    }

    /// Gives a new mapping of the file what it lacks, access last.
    #[expect(unsafe_code, reason = "UNSAFETY: changes a range that only the caller knows, or the view's own")]
    fn give_properties(&self, staging: AddrRange, prot: Prot) -> Result<(), SysError> {
        // A monitor resolves faults page by page. It does not serve a device's memory, which the kernel maps by huge pages,
        // nor a window's, which is emptied by whole huge pages.
        let is_whole = self.spec.is_device || self.spec.strategy == Strategy::Withdraw;
        let huge = is_whole.then_some(Advice::NoHugePage);
        for advice in [Advice::DontFork, Advice::DontDump, Advice::NoHugePage].into_iter().filter(|a| Some(*a) != huge)
        {
            // SAFETY: a mapping that only the caller knows, or the view's own; no advice drops pages.
            match unsafe { map::advise(staging, advice) } {
                // hugetlb does not know the advice, nor do kernels without huge pages.
                Err(e) if advice == Advice::NoHugePage && e.errno == Errno::EINVAL => {}
                other => other?,
            }
        }
        // SAFETY: as above.
        unsafe { map::protect(staging, prot) }
    }

    /// The userfaultfd that resolves faults of the live range; `None` if the kernel does.
    fn serving(&self) -> Result<Option<&Uffd>, SysError> {
        match &self.spec.server {
            _ if !self.is_served() => Ok(None),
            Server::Monitor(monitor) if monitor.is_dead() => Err(SysError::new("UFFDIO_REGISTER", Errno::EBADF)),
            Server::Monitor(monitor) => monitor.uffd().check_open().map(|()| Some(monitor.uffd())),
            // Without it the kernel resolves the faults of these accesses.
            Server::Own(uffd) => Ok(Some(&**uffd).filter(|uffd| uffd.is_open())),
            Server::Kernel => Err(SysError::new("UFFDIO_REGISTER", Errno::ENOSYS)),
        }
    }
}
