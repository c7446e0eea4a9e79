//! A structure that the kernel has sent, read with checked bounds.

use super::error::VfioError;

#[derive(Clone, Copy)]
pub(super) struct Reply<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reply<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    /// Its first `len` bytes, or all that it has.
    pub(super) fn first(self, len: usize) -> Self {
        Self { bytes: &self.bytes[..len.min(self.bytes.len())], ..self }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], VfioError> {
        let field = at.checked_add(N).and_then(|end| self.bytes.get(at..end)).and_then(|bytes| bytes.try_into().ok());
        field.ok_or_else(|| self.wrong("a field is beyond its end"))
    }

    pub(super) fn u8(&self, at: usize) -> Result<u8, VfioError> {
        self.field(at).map(u8::from_ne_bytes)
    }

    pub(super) fn u16(&self, at: usize) -> Result<u16, VfioError> {
        self.field(at).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self, at: usize) -> Result<u32, VfioError> {
        self.field(at).map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> Result<u64, VfioError> {
        self.field(at).map(u64::from_ne_bytes)
    }

    pub(super) fn wrong(&self, why: &'static str) -> VfioError {
        VfioError::Reply { what: self.what, len: self.bytes.len(), why }
    }
}
