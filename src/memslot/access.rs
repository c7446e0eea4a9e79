//! One guest access, made on the guest's behalf.

use crate::region::access_error::AccessError;
use crate::region::owner::OwnerView;

/// An access that exited with its address and data.
pub(crate) enum BusAccess<'a> {
    Load(&'a mut [u8]),
    Store(&'a [u8]),
}

impl BusAccess<'_> {
    /// The size in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            BusAccess::Load(data) => data.len(),
            BusAccess::Store(data) => data.len(),
        }
    }

    /// What a load of memory that is not there reads.
    pub(crate) fn ones(&mut self) {
        if let BusAccess::Load(data) = self {
            data.fill(0xff);
        }
    }

    /// Makes one access if the size and alignment allow it; otherwise accesses byte by byte, as the bus would.
    pub(crate) fn make(&mut self, view: &OwnerView, at: usize) -> Result<(), AccessError> {
        macro_rules! as_one {
            ($t:ty) => {
                match self {
                    BusAccess::Load(data) => {
                        view.read::<$t>(at).map(|value| data.copy_from_slice(&value.to_ne_bytes()))
                    }
                    BusAccess::Store(data) => {
                        let mut bytes = [0; size_of::<$t>()];
                        bytes.copy_from_slice(data);
                        view.write(at, <$t>::from_ne_bytes(bytes))
                    }
                }
            };
        }
        let len = self.len();
        match len {
            2 if at % 2 == 0 => as_one!(u16),
            4 if at % 4 == 0 => as_one!(u32),
            8 if at % 8 == 0 => as_one!(u64),
            _ => (0..len).try_for_each(|i| match self {
                BusAccess::Load(data) => view.read(at + i).map(|byte| data[i] = byte),
                BusAccess::Store(data) => view.write(at + i, data[i]),
            }),
        }
    }
}
