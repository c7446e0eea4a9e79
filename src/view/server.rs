//! The server of a live range's faults.

use crate::sync::inside::Mutex;
use crate::sys::SysError;
use crate::sys::identity::PerProcess;
use crate::sys::uffd::{Uffd, UffdFeatures};
use std::sync::Arc;

/// Resolves the faults of a live range under Zap; under the other strategies the kernel does.
#[derive(Clone)]
pub(crate) enum Server {
    /// A monitor reads them.
    Monitor(crate::monitor::Monitor),
    /// A userfaultfd in SIGBUS mode: the faulting thread resolves its own fault.
    Own(Arc<Uffd>),
    /// The kernel.
    Kernel,
}

impl Server {
    pub(crate) fn uffd(&self) -> Option<&Uffd> {
        match self {
            Server::Monitor(monitor) => Some(monitor.uffd()),
            Server::Own(uffd) => Some(uffd),
            Server::Kernel => None,
        }
    }
}

/// The process-wide userfaultfd in SIGBUS mode: no thread reads it, and a fault in it is SIGBUS.
pub(crate) fn refuser() -> Result<Arc<Uffd>, SysError> {
    static REFUSER: PerProcess<Mutex<Option<Arc<Uffd>>>> = PerProcess::new(|| Mutex::new(None));
    let mut refuser = REFUSER.get().lock();
    if let Some(uffd) = refuser.as_ref().filter(|uffd| uffd.is_open()) {
        return Ok(Arc::clone(uffd));
    }
    let features = UffdFeatures::MINOR_SHMEM | UffdFeatures::MINOR_HUGETLBFS | UffdFeatures::SIGBUS;
    let uffd = Arc::new(Uffd::open(features)?.0);
    *refuser = Some(Arc::clone(&uffd));
    Ok(uffd)
}
