//! A device's state as bytes, for snapshots and live migration.

use super::decode::SLOTS;
use super::error::PciError;

/// What a device is, apart from the content of its memory: see [`PciDevice::save`](super::PciDevice::save).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    pub(super) low_power: bool,
    pub(super) failed: bool,
    pub(super) config: Vec<u8>,
    pub(super) bars: [Option<SavedBar>; SLOTS],
    /// Writes to configuration space that were begun and not complete: where, and the bytes.
    pub(super) begun: Vec<(u64, Vec<u8>)>,
}

/// A BAR's register, which the bytes of configuration space do not hold as a whole, and where it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SavedBar {
    pub(super) size: u64,
    pub(super) written: u64,
    pub(super) pieces: u8,
    pub(super) place: Option<u64>,
}

const MAGIC: &[u8; 4] = b"rmPC";
const VERSION: u16 = 1;
const LOW_POWER: u8 = 1 << 0;
const FAILED: u8 = 1 << 1;
/// A slot: there is a BAR.
const PRESENT: u8 = 1 << 0;
/// A slot: it is decoded.
const PLACED: u8 = 1 << 1;

impl DeviceState {
    /// As bytes: little-endian on every architecture, and read by every later version of this crate.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(if self.low_power { LOW_POWER } else { 0 } | if self.failed { FAILED } else { 0 });
        for bar in &self.bars {
            let Some(bar) = bar else {
                bytes.push(0);
                continue;
            };
            bytes.push(PRESENT | if bar.place.is_some() { PLACED } else { 0 });
            bytes.push(bar.pieces);
            bytes.extend(bar.size.to_le_bytes());
            bytes.extend(bar.written.to_le_bytes());
            bytes.extend(bar.place.unwrap_or(0).to_le_bytes());
        }
        let mut put = |part: &[u8]| {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        };
        put(&self.config);
        let begun: Vec<u8> = self
            .begun
            .iter()
            .flat_map(|(at, bytes)| {
                let head = at.to_le_bytes().into_iter().chain((bytes.len() as u64).to_le_bytes());
                head.chain(bytes.iter().copied()).collect::<Vec<_>>()
            })
            .collect();
        put(&begun);
        bytes
    }

    /// From bytes of [`to_bytes`](Self::to_bytes), which may come from anywhere.
    ///
    /// # Errors
    /// They are no such bytes, or those of a later version of this crate (EINVAL).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PciError> {
        let mut rest = Rest(bytes);
        if rest.take(MAGIC.len())? != MAGIC {
            return Err(PciError::State("it is no state of a PCI device"));
        }
        if rest.take(2)? != VERSION.to_le_bytes() {
            return Err(PciError::State("a later version of this crate has saved it"));
        }
        let flags = rest.byte()?;
        let mut bars = [None; SLOTS];
        for bar in &mut bars {
            let about = rest.byte()?;
            if about & !(PRESENT | PLACED) != 0 {
                return Err(CORRUPT);
            }
            if about & PRESENT != 0 {
                let (pieces, size) = (rest.byte()?, rest.u64()?);
                let (written, place) = (rest.u64()?, rest.u64()?);
                *bar = Some(SavedBar { size, written, pieces, place: (about & PLACED != 0).then_some(place) });
            }
        }
        let config = rest.part()?.to_vec();
        let mut jobs = Rest(rest.part()?);
        let mut begun = Vec::new();
        while !jobs.0.is_empty() {
            begun.push((jobs.u64()?, jobs.part()?.to_vec()));
        }
        if !rest.0.is_empty() || flags & !(LOW_POWER | FAILED) != 0 {
            return Err(CORRUPT);
        }
        Ok(Self { low_power: flags & LOW_POWER != 0, failed: flags & FAILED != 0, config, bars, begun })
    }
}

pub(super) const CORRUPT: PciError = PciError::State("it is cut short, or contradicts itself");

/// Bytes that have not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], PciError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CORRUPT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, PciError> {
        self.take(1).map(|byte| byte[0])
    }

    fn u64(&mut self) -> Result<u64, PciError> {
        let bytes = self.take(8)?;
        bytes.try_into().map(u64::from_le_bytes).map_err(|_| CORRUPT)
    }

    fn part(&mut self) -> Result<&'a [u8], PciError> {
        let len = self.u64()?;
        self.take(usize::try_from(len).map_err(|_| CORRUPT)?)
    }
}
