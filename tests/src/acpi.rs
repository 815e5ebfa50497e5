//! ACPI tables for machines that no option describes: handed to QEMU beside a topology that has no
//! NUMA tables of its own.

/// A table of `signature` with `body` behind the 36-byte header; length and checksum are right.
pub fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(signature);
    bytes.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[1, 0]); // revision, checksum
    bytes.extend_from_slice(b"TINE  TINETEST");
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    bytes.extend_from_slice(b"TINE");
    bytes.extend_from_slice(&[1, 0, 0, 0]);
    bytes.extend_from_slice(body);
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
    bytes
}

/// SRAT: the CPU with local APIC id `apic` is in `node`.
pub fn cpu_affinity(apic: u8, node: u8) -> Vec<u8> {
    let mut entry = vec![0, 16, node, apic];
    entry.extend_from_slice(&1u32.to_le_bytes());
    entry.resize(16, 0);
    entry
}

/// SRAT: memory from `base`, `length` bytes, is in `node`.
pub fn memory_affinity(base: u64, length: u64, node: u32) -> Vec<u8> {
    let mut entry = vec![1, 40];
    entry.extend_from_slice(&node.to_le_bytes());
    entry.extend_from_slice(&[0; 2]);
    entry.extend_from_slice(&base.to_le_bytes());
    entry.extend_from_slice(&length.to_le_bytes());
    entry.extend_from_slice(&[0; 4]);
    entry.extend_from_slice(&1u32.to_le_bytes());
    entry.resize(40, 0);
    entry
}

/// A whole SRAT of `entries`.
pub fn srat(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![0u8; 12];
    body[0] = 1;
    entries
        .iter()
        .for_each(|entry| body.extend_from_slice(entry));
    table(b"SRAT", &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_add_up() {
        let bytes = srat(&[cpu_affinity(1, 2), memory_affinity(0, 1 << 20, 1)]);
        assert_eq!(bytes.len(), 48 + 16 + 40);
        assert_eq!(
            u32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            bytes.len() as u32
        );
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        assert_eq!(&bytes[..4], b"SRAT");
    }
}
