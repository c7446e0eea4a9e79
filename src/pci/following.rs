//! Following a device's BARs.

use super::address_map::{AddressMap, Follower};
use super::decode::BarPlace;
use super::error::PciError;
use super::space::Space;
use super::state::{Device, PciDevice};
use crate::sync::wait::Patience;
use std::fmt;
use std::sync::{Arc, Weak};

/// An [`AddressMap`] that follows a device. Dropping it removes every place from the map, and waits for a change of the
/// device that is under way. In a forked child it does nothing: the map is the parent's.
#[must_use = "dropped at once, the map follows nothing"]
pub struct Following {
    device: Weak<Device>,
    follower: Arc<Follower>,
}

impl PciDevice {
    /// Lets `map` follow the device's BARs through the guest's address space: it is told of every place at which one is
    /// decoded, now and from now on, until the returned value or the device is dropped.
    ///
    /// Reports come with writes to configuration space, in this order: the memory is revoked; places are left; the registers
    /// change; places are entered; the memory comes back. So at no time is a place in the map whose memory is not the
    /// guest's to reach. A BAR that moves while memory is on is taken from the old place and put at the new one; its
    /// mappings stay as they are. Size probes move nothing, see [`Decoder`](super::Decoder).
    ///
    /// ```
    /// use revocable_mmio::pci::{AddressMap, Bar, BarPlace, Following, PciDevice, Space};
    /// use std::sync::{Arc, Mutex};
    ///
    /// #[derive(Default)]
    /// struct MmioBus(Mutex<Vec<BarPlace>>);
    ///
    /// impl AddressMap for MmioBus {
    ///     fn insert(&self, place: &BarPlace) -> std::io::Result<()> {
    ///         self.0.lock().unwrap().push(*place); // a monitor adds its memslot here
    ///         Ok(())
    ///     }
    ///     fn remove(&self, place: &BarPlace) {
    ///         self.0.lock().unwrap().retain(|known| known != place);
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000)).build()?;
    /// let bus = Arc::new(MmioBus::default());
    /// let _following: Following = nic.follow(Arc::clone(&bus) as _)?;
    /// nic.write(Space::Config, 0x10, &0xe000_0000u32.to_le_bytes()[..])?;
    /// assert!(bus.0.lock().unwrap().is_empty(), "memory is off");
    /// nic.write(Space::Config, 4, &2u16.to_le_bytes()[..])?;
    /// assert_eq!(bus.0.lock().unwrap()[0].address, 0xe000_0000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Blocking
    /// Waits for a change of the device's registers that is under way.
    ///
    /// # Errors
    /// The map refused a place ([`PciError::Place`]): it has none then. EDEADLK from inside a change of the device.
    /// EPERM in a forked child.
    pub fn follow(&self, map: Arc<dyn AddressMap>) -> Result<Following, PciError> {
        let device = &self.device;
        if !device.followers.are_of_this_process() {
            return Err(PciError::Forked);
        }
        let _turn = device.take_turn(Patience::Forever)?;
        let now = device.config.lock().decoded.clone();
        let follower = device.followers.add(map, &now)?;
        Ok(Following { device: Arc::downgrade(device), follower })
    }

    /// Where a BAR or the ROM is decoded. `None` if it is not: its space is disabled, the device is in D3hot, the register
    /// has no address, or a map refused the place.
    pub fn place(&self, space: Space) -> Option<BarPlace> {
        self.device.config.lock().decoded.place(space)
    }

    /// Tries once more to enter the places that an [`AddressMap`] refused.
    ///
    /// ```
    /// use revocable_mmio::pci::{AddressMap, Bar, BarPlace, PciDevice, PciError, Space};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// /// A bus with another device in the way, at first.
    /// #[derive(Default)]
    /// struct Bus(AtomicBool);
    ///
    /// impl AddressMap for Bus {
    ///     fn insert(&self, _: &BarPlace) -> std::io::Result<()> {
    ///         if self.0.swap(true, Ordering::Relaxed) { Ok(()) } else { Err(std::io::ErrorKind::AlreadyExists.into()) }
    ///     }
    ///     fn remove(&self, _: &BarPlace) {}
    /// }
    ///
    /// let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(0x20000).at(0xe000_0000)).build()?;
    /// let _following = nic.follow(Arc::new(Bus::default()))?;
    /// assert!(matches!(nic.write(Space::Config, 4, &[2, 0][..]), Err(PciError::Place { .. })));
    /// assert!(nic.place(Space::Bar(0)).is_none());
    /// nic.retry_places()?; // the other device has gone
    /// assert!(nic.place(Space::Bar(0)).is_some());
    /// # Ok::<(), PciError>(())
    /// ```
    ///
    /// # Errors
    /// The first that is refused again; the others are entered all the same.
    pub fn retry_places(&self) -> Result<(), PciError> {
        let turn = self.device.take_turn(Patience::Forever)?;
        self.device.update(&turn, Patience::Forever, |_| {})
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let device = self.device.upgrade();
        if device.as_ref().is_some_and(|device| !device.followers.are_of_this_process()) {
            return;
        }
        // Inside of a change of the device there is no turn to wait for.
        let _turn = device.as_ref().and_then(|device| device.take_turn(Patience::Forever).ok());
        if let Some(device) = &device {
            device.followers.forget(&self.follower);
        }
        self.follower.leave();
    }
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Following").finish_non_exhaustive()
    }
}
