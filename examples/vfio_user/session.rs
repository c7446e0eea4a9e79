//! One client's session: its commands, and the device that is made for it.

use super::device::{BAR, Device};
use super::dma::DmaTable;
use super::irqs::{IRQ_INDICES, Irqs};
use super::message::*;
use nix::errno::Errno;
use revocable_mmio::ShareAccess;
use revocable_mmio::pci::{PciError, Space};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;

/// The version that is spoken. A client with a smaller minor number is answered with that.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;

/// GET_INFO flags: the device can be reset, and is a PCI device.
const DEVICE_RESET: u32 = 1;
const DEVICE_PCI: u32 = 1 << 1;
/// The regions of a PCI device: six BARs, the ROM, configuration space, and VGA.
const REGIONS: u32 = 9;

/// GET_REGION_INFO flags.
const CAN_READ: u32 = 1;
const CAN_WRITE: u32 = 1 << 1;
const CAN_MAP: u32 = 1 << 2;
const HAS_CAPABILITIES: u32 = 1 << 3;
/// The size of a region's description, in bytes, and of its one capability, with one area.
const REGION_INFO: u32 = 32;
const SPARSE: u32 = 32;

pub(crate) struct Session<'a> {
    device: &'a Device,
    say: &'a (dyn Fn(&str) + Sync),
    irqs: Irqs,
    dma: DmaTable,
    /// The version is agreed, and the client takes descriptors.
    agreed: Option<bool>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(device: &'a Device, say: &'a (dyn Fn(&str) + Sync)) -> Self {
        Self { device, say, irqs: Irqs::default(), dma: DmaTable::default(), agreed: None }
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// What the client's reply reports.
    pub(crate) fn handle(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
        let fields = Fields(payload);
        match (command, self.agreed) {
            (VERSION, None) => self.version(fields),
            (VERSION, Some(_)) | (_, None) => Err(Errno::EINVAL),
            (DMA_MAP, _) => self.dma.map(fields),
            (DMA_UNMAP, _) => self.dma.unmap(fields),
            (GET_INFO, _) => info(fields),
            (GET_REGION_INFO, Some(takes_fds)) => self.region_info(fields, takes_fds),
            (GET_IRQ_INFO, _) => self.irqs.info(fields),
            (SET_IRQS, _) => self.irqs.set(fields, fds),
            (REGION_READ, _) => self.read(fields),
            (REGION_WRITE, _) => self.write(fields),
            (RESET, _) => self.reset(fields),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Is the version agreed? A client that asks for another one is hung up on.
    pub(crate) fn is_agreed(&self) -> bool {
        self.agreed.is_some()
    }

    fn version(&mut self, mut fields: Fields<'_>) -> Result<Reply, Errno> {
        let (major, minor) = (fields.u16()?, fields.u16()?);
        if major != MAJOR {
            return Err(Errno::EINVAL);
        }
        let minor = minor.min(MINOR);
        let theirs = match fields.rest() {
            [] => Value::Null,
            [text @ .., 0] => serde_json::from_slice(text).map_err(|_| Errno::EINVAL)?,
            _ => return Err(Errno::EINVAL),
        };
        let most_fds = theirs.pointer("/capabilities/max_msg_fds").map_or(Some(1), Value::as_u64);
        self.agreed = Some(most_fds.ok_or(Errno::EINVAL)? > 0);
        let ours = json!({ "capabilities": {
            "max_msg_fds": 8, "max_data_xfer_size": MOST_DATA, "max_dma_maps": DmaTable::MOST,
        }});
        (self.say)(&format!("speaks version {major}.{minor}"));
        let mut payload = [major, minor].map(u16::to_ne_bytes).as_flattened().to_vec();
        payload.extend(ours.to_string().bytes());
        payload.push(0);
        Ok(Reply { payload, fd: None })
    }

    /// The description of a region. For the BAR that can be mapped, its descriptor and the capability that says which part
    /// of it can be: both only if the client has left room for the capability. QEMU sends as many bytes as it has room for.
    fn region_info(&self, mut fields: Fields<'_>, takes_fds: bool) -> Result<Reply, Errno> {
        let (room, _flags, index, _cap) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        let (_size, _offset) = (fields.u64()?, fields.u64()?);
        if room < REGION_INFO || index >= REGIONS {
            return Err(Errno::EINVAL);
        }
        let space = Space::from_vfio_index(index);
        let info = space.as_ref().map(|space| self.device.pci.info(*space));
        let (size, read, write) = info.map_or((0, false, false), |info| (info.size, info.read, info.write));
        let mut flags: u32 =
            [(read, CAN_READ), (write, CAN_WRITE)].map(|(can, flag)| u32::from(can) * flag).iter().sum();
        let window = space.ok().filter(|space| *space == BAR && takes_fds);
        let window = window.and_then(|bar| self.device.pci.region(bar));
        let (mut needed, mut capability, mut fd) = (REGION_INFO, Vec::<u8>::new(), None);
        if let Some(window) = window {
            flags |= CAN_MAP | HAS_CAPABILITIES;
            needed += SPARSE;
            if room >= needed {
                // Id 1 (sparse mmap) in version 1, no capability after it, one area: all of the BAR.
                capability.extend([1u16, 1].map(u16::to_ne_bytes).as_flattened());
                capability.extend([0u32, 1, 0].map(u32::to_ne_bytes).as_flattened());
                capability.extend([0u64, size].map(u64::to_ne_bytes).as_flattened());
                fd = Some(window.share(ShareAccess::ReadWrite).map_err(|_| Errno::EIO)?);
                (self.say)("has the descriptor of BAR 0");
            }
        }
        // QEMU wants the capability's place in the short reply too.
        let offset = if needed > REGION_INFO { REGION_INFO } else { 0 };
        let mut payload = [needed, flags, index, offset].map(u32::to_ne_bytes).as_flattened().to_vec();
        payload.extend([size, 0].map(u64::to_ne_bytes).as_flattened());
        payload.extend(capability);
        Ok(Reply { payload, fd })
    }

    fn read(&self, fields: Fields<'_>) -> Result<Reply, Errno> {
        let (head, at, space, count, fields) = transfer(fields)?;
        fields.end()?;
        let mut payload = head;
        let start = payload.len();
        payload.resize(start + count, 0);
        let done = self.device.pci.read(space, at, &mut payload[start..]).map_err(|e| errno(&e))?;
        if done == count { Ok(Reply { payload, fd: None }) } else { Err(Errno::EINVAL) }
    }

    fn write(&self, fields: Fields<'_>) -> Result<Reply, Errno> {
        let (payload, at, space, count, fields) = transfer(fields)?;
        let bytes = fields.rest();
        let left = self.device.pci.info(space).size.checked_sub(at).ok_or(Errno::EINVAL)?;
        if bytes.len() != count || count as u64 > left {
            return Err(Errno::EINVAL);
        }
        let before = (self.device.decodes(), self.device.pci.power_state());
        let written = self.device.pci.write(space, at, bytes);
        if space == Space::Config {
            self.tell(before);
        }
        written.map_err(|e| errno(&e))?;
        Ok(Reply { payload, fd: None })
    }

    fn reset(&self, fields: Fields<'_>) -> Result<Reply, Errno> {
        fields.end()?;
        let before = (self.device.decodes(), self.device.pci.power_state());
        self.device.pci.reset().map_err(|e| errno(&e))?;
        (self.say)("has reset the device");
        self.tell(before);
        Ok(Reply::default())
    }

    /// Says what a command has changed of what the device decodes and of its power state. The client has no reply yet, so
    /// the BAR does not come back before its absence is counted.
    fn tell(&self, (decoded, power): (bool, u8)) {
        let is_power = self.device.pci.power_state();
        if power != is_power {
            (self.say)(&format!("changes the power state from {power} to {is_power}"));
        }
        match (decoded, self.device.decodes()) {
            (true, false) => {
                self.device.count();
                (self.say)("turns memory off: BAR 0 is taken away");
            }
            (false, true) => (self.say)("turns memory on"),
            _ => {}
        }
    }
}

fn info(mut fields: Fields<'_>) -> Result<Reply, Errno> {
    let room = fields.u32()?;
    if room < 16 {
        return Err(Errno::EINVAL);
    }
    let payload = [16, DEVICE_RESET | DEVICE_PCI, REGIONS, IRQ_INDICES].map(u32::to_ne_bytes).as_flattened().to_vec();
    Ok(Reply { payload, fd: None })
}

/// The head of REGION_READ and REGION_WRITE: as it goes back, and offset, space and count.
fn transfer(mut fields: Fields<'_>) -> Result<(Vec<u8>, u64, Space, usize, Fields<'_>), Errno> {
    let (at, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let mut head = at.to_ne_bytes().to_vec();
    head.extend([region, count].map(u32::to_ne_bytes).as_flattened());
    let count = usize::try_from(count).ok().filter(|count| *count <= MOST_DATA).ok_or(Errno::EINVAL)?;
    let space = Space::from_vfio_index(region).map_err(|e| errno(&e))?;
    Ok((head, at, space, count, fields))
}

fn errno(e: &PciError) -> Errno {
    Errno::from_raw(e.errno())
}
