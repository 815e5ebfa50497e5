//! Executables that are wrong in one way each.

/// A 64-bit ELF with one segment at 0x10000 whose code exits with 33: good, before [`spoiled`].
pub fn good() -> Vec<u8> {
    let mut file = Vec::new();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put(&2u16.to_le_bytes()); // executable
    put(&62u16.to_le_bytes()); // x86-64
    put(&1u32.to_le_bytes());
    put(&0x10078u64.to_le_bytes()); // entry
    put(&64u64.to_le_bytes()); // program headers
    put(&0u64.to_le_bytes());
    put(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        put(&half.to_le_bytes());
    }
    put(&1u32.to_le_bytes()); // PT_LOAD
    put(&5u32.to_le_bytes()); // read, execute
    for word in [0u64, 0x10000, 0x10000, 136, 136, 0x1000] {
        put(&word.to_le_bytes());
    }
    put(b"\xbf\x21\0\0\0\xb8\x3c\0\0\0\x0f\x05\0\0\0\0"); // exit(33)
    file
}

/// Ways to spoil it: a name and the file.
pub fn spoiled() -> Vec<(&'static str, Vec<u8>)> {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = good();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    vec![
        ("empty", Vec::new()),
        ("text", b"hello\n".to_vec()),
        ("magic-only", good()[..4].to_vec()),
        ("truncated-header", good()[..40].to_vec()),
        ("truncated-program-headers", good()[..80].to_vec()),
        ("other-machine", with(18, &183u16.to_le_bytes())),
        ("object-file", with(16, &1u16.to_le_bytes())),
        ("no-program-headers", with(56, &0u16.to_le_bytes())),
        (
            "program-headers-far-away",
            with(32, &(1u64 << 50).to_le_bytes()),
        ),
        (
            "kernel-segment",
            with(80, &0xffff_8000_0000_0000u64.to_le_bytes()),
        ),
        ("huge-segment", with(104, &(1u64 << 60).to_le_bytes())),
        (
            "file-size-above-memory-size",
            with(96, &0x10_0000u64.to_le_bytes()),
        ),
        (
            "entry-in-kernel",
            with(24, &0xffff_ffff_8000_0000u64.to_le_bytes()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_good_one_runs_on_the_host_and_the_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::process::Command::new(&path)
                .output()
                .map(|o| o.status.code())
        };
        assert_eq!(run("good", &good()).unwrap(), Some(33));
        for (name, bytes) in spoiled() {
            // Refused, or killed; a shell is never asked.
            assert!(!matches!(run(name, &bytes), Ok(Some(33))), "{name}");
        }
    }
}
