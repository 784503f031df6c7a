//! Builds the kernel programs with this toolchain and puts the object where `src/kernel/object.rs` includes it. Tells
//! `src/version.rs` the commit.

#[path = "build/btf.rs"]
mod btf;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

/// Features of a later release as tests have it, which change the kernel programs: as cargo says that they are on, and their name.
const LATER: [(&str, &str); 3] = [
    ("CARGO_FEATURE_TEST_PROGRAM", "test-program"),
    ("CARGO_FEATURE_TEST_LAYOUT", "test-layout"),
    ("CARGO_FEATURE_TEST_LAYOUT_MORE", "test-layout-more"),
];

fn main() {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = crate_dir.parent().expect("the crate is in the workspace").to_owned();
    let programs = workspace.join("pod-steer-ebpf");
    println!("cargo:rerun-if-changed={}", programs.join("src").display());
    println!("cargo:rerun-if-changed={}", programs.join("Cargo.toml").display());
    println!("cargo:rerun-if-changed={}", workspace.join("Cargo.toml").display());

    tell_commit(&workspace);
    if env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "musl") {
        // A static program relocates its own addresses when it starts. Packed, their list is a fiftieth of its size: some 200 kB less.
        // A compiler passes this on to its linker, unless the linker is called itself.
        let is_linker = env::var("RUSTC_LINKER").is_ok_and(|linker| linker.ends_with("lld"));
        let arguments: &[&str] =
            if is_linker { &["-z", "pack-relative-relocs"] } else { &["-Wl,-z,pack-relative-relocs"] };
        arguments.iter().for_each(|argument| println!("cargo:rustc-link-arg-bins={argument}"));
    }

    let tools = workspace.join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let search: Vec<PathBuf> = std::iter::once(tools).chain(env::split_paths(&path)).collect();
    if !search.iter().any(|dir| dir.join("bpf-linker").is_file()) {
        panic!("bpf-linker is not installed: run `cargo xtask setup` once, then build again");
    }

    let big = env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "big");
    let target = if big { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    // OUT_DIR is `target/PROFILE/build/PACKAGE-HASH/out`, and has another hash for each set of features. What the kernel programs
    // are built from is compiled once for all of them. Cargo locks `target/PROFILE` while this runs, so no other build takes the place of
    // the object.
    let target_dir = out_dir.ancestors().nth(3).expect("OUT_DIR is four levels deep").join("kernel");
    let later = LATER.iter().filter(|(variable, _)| env::var_os(variable).is_some()).map(|(_, feature)| *feature);
    let features: Vec<&str> = ["kernel"].into_iter().chain(later).collect();
    // By default the linker leaves what sets or copies memory to functions that go byte by byte, also where the size is known.
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ];
    let status = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"))
        .current_dir(&workspace)
        .args(["build", "--package", "pod-steer-ebpf", "--bins", "--profile", "kernel"])
        .args(["--features", &features.join(",")])
        .args(["--target", target, "-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("PATH", env::join_paths(search).expect("it was split from a PATH"))
        // The kernel target has no prebuilt `core`, and building it is an unstable feature of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC")
        .status()
        .expect("cargo runs");
    if !status.success() {
        panic!("the kernel programs did not build ({status}); is rust-src there? `cargo xtask setup` installs it");
    }
    // The verifier's log names source lines only where programs are developed: they are half of the object. In the last one, most of it.
    let has_lines = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let objects = [
        ("pod-steer-ebpf", "pod-steer.bpf.o", has_lines),
        ("pod-steer-idle", "idle.bpf.o", has_lines),
        ("pod-steer-judge", "judge.bpf.o", has_lines),
        ("pod-steer-trace", "trace.bpf.o", false),
    ];
    for (program, object, has_lines) in objects {
        let built = target_dir.join(target).join("kernel").join(program);
        let built = fs::read(&built).expect("cargo has just built the object");
        let stripped = without_debug_information(&built, has_lines).expect("the linker has written an ELF file");
        fs::write(out_dir.join(object), stripped).expect("OUT_DIR can be written");
    }
}

/// Drops the DWARF, which is four fifths of the object: the linker has made BTF of it, and nothing else reads it. Without `has_lines`, also
/// the part of the BTF that leads from instructions to lines.
fn without_debug_information(object: &[u8], has_lines: bool) -> object::build::Result<Vec<u8>> {
    let mut elf = Builder::read(object)?;
    for section in elf.sections.iter_mut() {
        let name = section.name.as_slice();
        // Each place in `.BTF.ext` has its value, and the loader reads no relocation of it.
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_") || name == b".rel.BTF.ext";
    }
    if !has_lines {
        drop_lines(&mut elf).expect("the linker has written BTF");
    }
    elf.delete_orphans();
    // The linker has put the names of sections among those of symbols; the writer wants them apart.
    let names = elf.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut left = Vec::new();
    elf.write(&mut left)?;
    Ok(left)
}

/// Drops what only the verifier's log has a use for.
fn drop_lines(elf: &mut Builder<'_>) -> Option<()> {
    let data = |name: &[u8]| {
        let section = elf.sections.iter().find(|section| section.name.as_slice() == name)?;
        if let SectionData::Data(data) = &section.data { Some(data.to_vec()) } else { None }
    };
    let (btf, ext) = btf::without_lines(&data(b".BTF")?, &data(b".BTF.ext")?)?;
    for section in elf.sections.iter_mut() {
        match section.name.as_slice() {
            b".BTF" => section.data = SectionData::Data(btf.clone().into()),
            b".BTF.ext" => section.data = SectionData::Data(ext.clone().into()),
            _ => {}
        }
    }
    Some(())
}

/// Sets `POD_STEER_COMMIT`, unless this is no repository or there is no git.
fn tell_commit(workspace: &Path) {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(workspace).args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        println!("cargo:rustc-env=POD_STEER_COMMIT={commit}");
    }
    // It changes with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(|log| workspace.join(log))
        && log.exists()
    {
        println!("cargo:rerun-if-changed={}", log.display());
    }
}
