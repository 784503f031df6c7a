//! An OCI image layout with one file in it, as bytes: what depends on nothing but the program and the commit it was built from.

use std::env::consts::ARCH;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The name of the only file in the image.
pub const PROGRAM: &str = "pod-steer";
/// The name under which an engine has the image.
pub const NAME: &str = concat!("pod-steer:", env!("CARGO_PKG_VERSION"));
const DESCRIPTION: &str = "Many containers on one port, chosen by the kernel";

/// As that of the RPM: the program contains the kernel programs, which are offered under the GPL too.
const LICENCES: &str = "(MIT OR Apache-2.0) AND (MIT OR Apache-2.0 OR GPL-2.0-only)";

/// The media types of the parts (OCI image specification 1.0, which all engines with OCI images read).
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The commit that the program was built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id, with `-dirty` if files differed from it.
    pub id: String,
    /// Its time, as in RFC 3339.
    pub time: String,
}

/// The parts of an image, as they are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    /// The image of a program.
    pub fn with(program: &[u8], commit: &Commit) -> Result<Self> {
        let layer = tar(&[(PROGRAM, program, 0o755)])?;
        let labels = json!({
            "org.opencontainers.image.title": "pod-steer",
            "org.opencontainers.image.description": DESCRIPTION,
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.revision": commit.id,
            "org.opencontainers.image.created": commit.time,
            "org.opencontainers.image.licenses": LICENCES,
        });
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "created": commit.time,
            "config": {
                // It has no file of users: a number needs none. docs/security.md has the capabilities that root keeps.
                "User": "0:0",
                "Entrypoint": [format!("/{PROGRAM}")],
                "Cmd": ["run"],
                "WorkingDir": "/",
                "StopSignal": "SIGTERM",
                "Labels": labels,
            },
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
            "history": [{ "created": commit.time, "created_by": "cargo xtask package image" }],
        }))?;
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": [descriptor(LAYER, &layer)],
            "annotations": labels,
        }))?;
        Ok(Self { layer, config, manifest })
    }

    /// The digest that identifies it in a registry.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The digest by which an engine knows the only layer.
    pub fn layer_digest(&self) -> String {
        digest(&self.layer)
    }

    /// The names of the files in it.
    pub fn contents(&self) -> Result<Vec<String>> {
        let mut archive = tar::Archive::new(&self.layer[..]);
        let names = archive.entries()?.map(|entry| Ok(entry?.path()?.display().to_string()));
        names.collect()
    }

    /// The size of all parts in bytes.
    pub fn bytes(&self) -> usize {
        self.layer.len() + self.config.len() + self.manifest.len()
    }

    /// The files of the layout. `manifest.json` is Docker's own list of contents, the only one that it reads before 25.0.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut entry = descriptor(MANIFEST, &self.manifest);
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        entry["annotations"] = json!({
            "org.opencontainers.image.ref.name": env!("CARGO_PKG_VERSION"),
            "io.containerd.image.name": format!("docker.io/library/{NAME}"),
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        let docker = json!([{ "Config": blob(&self.config), "RepoTags": [NAME], "Layers": [blob(&self.layer)] }]);
        vec![
            ("oci-layout".to_owned(), json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
            ("manifest.json".to_owned(), docker.to_string().into_bytes()),
            (blob(&self.config), self.config.clone()),
            (blob(&self.layer), self.layer.clone()),
            (blob(&self.manifest), self.manifest.clone()),
        ]
    }

    /// The layout as one archive.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let files = self.files();
        let files: Vec<_> = files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice(), 0o644)).collect();
        tar(&files)
    }
}

/// The machine's architecture by its name in images.
fn architecture() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn descriptor(kind: &str, contents: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(contents), "size": contents.len() })
}

fn digest(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// Where a layout has this content.
fn blob(contents: &[u8]) -> String {
    format!("blobs/{}", digest(contents).replace(':', "/"))
}

/// An archive of files that root owns, all of one time: the same files give the same archive.
fn tar(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents, mode) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *contents)?;
    }
    Ok(archive.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image(program: &[u8]) -> Image {
        let commit = Commit { id: "0123".to_owned(), time: "2026-01-01T00:00:00+00:00".to_owned() };
        Image::with(program, &commit).unwrap()
    }

    #[test]
    fn the_layer_has_the_program_alone() {
        let image = image(b"program");
        assert_eq!(image.contents().unwrap(), [PROGRAM]);
        let mut layer = tar::Archive::new(&image.layer[..]);
        let mut entry = layer.entries().unwrap().next().unwrap().unwrap();
        let mut contents = String::new();
        entry.read_to_string(&mut contents).unwrap();
        let header = entry.header();
        let (mode, mtime, owner) = (header.mode().unwrap(), header.mtime().unwrap(), header.uid().unwrap());
        assert_eq!((contents.as_str(), mode, mtime, owner), ("program", 0o755, 0, 0));
    }

    #[test]
    fn every_part_is_named_by_its_contents() {
        // As `printf abc | sha256sum`.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest(b"abc"), abc);
        let image = image(b"program");
        let files: Vec<(String, Vec<u8>)> = image.files();
        let file = |name: &str| files.iter().find(|(one, _)| one == name).map(|(_, contents)| contents.as_slice());
        let read = |name: &str| -> Value { serde_json::from_slice(file(name).unwrap()).unwrap() };
        let has = |descriptor: &Value| {
            let name = format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
            let contents = file(&name).unwrap();
            assert_eq!((descriptor["size"].as_u64(), name), (Some(contents.len() as u64), blob(contents)));
        };
        has(&read("index.json")["manifests"][0]);
        assert_eq!(read("index.json")["manifests"][0]["digest"], image.digest());
        let manifest = read(&blob(&image.manifest));
        has(&manifest["config"]);
        has(&manifest["layers"][0]);
        let config = read(&blob(&image.config));
        assert_eq!(config["rootfs"]["diff_ids"], json!([image.layer_digest()]));
        assert_eq!(config["config"]["Labels"], manifest["annotations"]);
        // Docker's own list names the same parts.
        let docker = &read("manifest.json")[0];
        assert_eq!(docker["Config"], blob(&image.config));
        assert_eq!(docker["Layers"], json!([blob(&image.layer)]));
    }

    #[test]
    fn the_licences_are_those_of_the_other_packages() {
        let other = include_str!("../../../../pod-steer/Cargo.toml");
        assert!(other.contains(&format!("license = \"{LICENCES}\"\n")), "the RPM has others");
        let config: Value = serde_json::from_slice(&image(b"program").config).unwrap();
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.licenses"], LICENCES);
    }

    #[test]
    fn the_digest_depends_on_the_program_and_the_commit() {
        assert_eq!(image(b"program"), image(b"program"));
        assert_ne!(image(b"program").digest(), image(b"another").digest());
        let commit = Commit { id: "4567".to_owned(), time: "2026-01-01T00:00:00+00:00".to_owned() };
        assert_ne!(image(b"program").digest(), Image::with(b"program", &commit).unwrap().digest());
    }
}
