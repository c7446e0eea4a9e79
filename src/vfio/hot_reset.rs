//! Which functions a reset of a bus reaches.

use super::error::VfioError;
use super::reply::Reply;

/// A function that a reset of its bus reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// The number of its IOMMU group. If the device that was asked is bound to an iommufd: the number that this iommufd gave
    /// to this function; 0 (`VFIO_PCI_DEVID_OWNED`) if it has none, and the iommufd has its group; [`u32::MAX`]
    /// (`VFIO_PCI_DEVID_NOT_OWNED`) if it is not the iommufd's, and the reset is refused.
    pub group: u32,
    /// The PCI segment (domain).
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// Device (5 bits) and function (3 bits).
    pub devfn: u8,
}

/// Reads a reply of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
pub(super) fn parse(reply: &[u8]) -> Result<Vec<Function>, VfioError> {
    const HEADER: usize = 12;
    const FUNCTION: usize = 8;
    let reply = Reply::new("struct vfio_pci_hot_reset_info", reply);
    let count = reply.u32(8)? as usize;
    if count.checked_mul(FUNCTION).is_none_or(|len| len > reply.len() - HEADER) {
        return Err(reply.wrong("its list of functions is longer than itself"));
    }
    let functions = (0..count).map(|i| {
        let at = HEADER + i * FUNCTION;
        let (group, segment) = (reply.u32(at)?, reply.u16(at + 4)?);
        Ok(Function { group, segment, bus: reply.u8(at + 6)?, devfn: reply.u8(at + 7)? })
    });
    functions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_one_that_is_too_long_is_an_error() {
        let mut reply = Vec::new();
        for word in [28_u32, 0, 2, 7, 0x0800_0001, 9, 0x0901_0002] {
            reply.extend(word.to_ne_bytes());
        }
        if cfg!(target_endian = "little") {
            let functions = parse(&reply).expect("a reply");
            let first = Function { group: 7, segment: 1, bus: 0, devfn: 8 };
            assert_eq!(functions, [first, Function { group: 9, segment: 2, bus: 1, devfn: 9 }]);
        }
        for len in 0..reply.len() {
            assert!(parse(&reply[..len]).is_err(), "{len} bytes");
        }
        reply[8..12].fill(0xff);
        assert!(parse(&reply).is_err());
    }
}
