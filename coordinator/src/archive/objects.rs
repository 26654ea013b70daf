//! Files at a URL: moved in parts, and hashed on their way.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig, WriteMultipart};
use retouch_proto::ContentHash;
use tokio_stream::StreamExt;
use url::Url;

use super::{ArchiveError, ManifestFile};

/// Bytes that travel in one request. Requests have deadlines, files of any length have none.
const PART_BYTES: usize = 8 << 20;
/// Parts of a file that are under way at a time.
const PARTS_MAX: usize = 4;
/// A request is tried again for so long.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The objects below a URL, by their names from there on.
#[derive(Debug)]
pub(super) struct Objects {
    url: String,
    store: Arc<dyn ObjectStore>,
    root: Key,
}

impl Objects {
    pub(super) fn open(url: &str) -> Result<Self, ArchiveError> {
        let unusable = |reason: String| ArchiveError::Url {
            url: url.to_owned(),
            reason,
        };
        let parsed = Url::parse(url).map_err(|error| unusable(error.to_string()))?;
        let store = connect(&parsed).map_err(unusable)?;
        let root = match parsed.scheme() {
            "file" => Key::default(),
            _ => Key::from_url_path(parsed.path()).map_err(|error| unusable(error.to_string()))?,
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            store,
            root,
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The names of all objects.
    pub(super) async fn list(&self) -> Result<Vec<String>, ArchiveError> {
        let listed = self.store.list(Some(&self.root));
        let listed: Result<Vec<ObjectMeta>, _> = listed.collect().await;
        let listed = listed.map_err(|source| self.failed("", source))?;
        let name = |object: ObjectMeta| {
            let parts = object.location.prefix_match(&self.root)?;
            let parts: Vec<_> = parts.collect();
            let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
            Some(parts.join("/"))
        };
        Ok(listed.into_iter().filter_map(name).collect())
    }

    /// A small object's bytes; a longer one is torn.
    pub(super) async fn get(&self, name: &str, bytes_max: u64) -> Result<Vec<u8>, ArchiveError> {
        let got = self.store.get(&self.key(name)).await;
        let got = got.map_err(|source| self.missing_or_failed(name, source))?;
        let size = got.meta.size;
        if size > bytes_max {
            let reason = format!("it has {size} bytes, at most {bytes_max} make sense");
            return Err(self.torn(name, reason));
        }
        let bytes = got.bytes().await;
        Ok(bytes.map_err(|source| self.failed(name, source))?.into())
    }

    /// Puts a small object there, whole or not at all.
    pub(super) async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        let put = self.store.put(&self.key(name), bytes.into()).await;
        put.map(drop).map_err(|source| self.failed(name, source))
    }

    /// Deletes an object; one that is not there is as good.
    pub(super) async fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        match self.store.delete(&self.key(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(self.failed(name, source)),
        }
    }

    /// Puts a file there, whole or not at all; says what was sent.
    pub(super) async fn upload(
        &self,
        name: &str,
        path: &Path,
    ) -> Result<ManifestFile, ArchiveError> {
        let mut file = File::open(path).map_err(ArchiveError::io(path))?;
        let begun = self.store.put_multipart(&self.key(name)).await;
        let begun = begun.map_err(|source| self.failed(name, source))?;
        let mut parts = WriteMultipart::new_with_chunk_size(begun, PART_BYTES);
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
        let sent = loop {
            if let Err(source) = parts.wait_for_capacity(PARTS_MAX).await {
                break Err(self.failed(name, source));
            }
            match read_part(&mut file) {
                Ok(part) if part.is_empty() => break Ok(()),
                Ok(part) => {
                    hasher.update(&part);
                    bytes += part.len() as u64;
                    parts.put(part.into());
                }
                Err(source) => break Err(ArchiveError::io(path)(source)),
            }
        };
        if let Err(error) = sent {
            // What is wrong is known; the store may not even hear this.
            let _ = parts.abort().await;
            return Err(error);
        }
        let finished = parts.finish().await;
        finished.map_err(|source| self.failed(name, source))?;
        Ok(ManifestFile {
            name: name.to_owned(),
            bytes,
            blake3: ContentHash(*hasher.finalize().as_bytes()),
        })
    }

    /// Fetches an object into a new file, which is durable and has the length and hash that it should
    /// have when this returns.
    pub(super) async fn download(
        &self,
        name: &str,
        expected: &ManifestFile,
        to: &Path,
    ) -> Result<(), ArchiveError> {
        let key = self.key(name);
        let found = self.store.head(&key).await;
        let found = found.map_err(|source| self.missing_or_failed(name, source))?;
        if found.size != expected.bytes {
            let reason = format!("it has {} bytes, expected {}", found.size, expected.bytes);
            return Err(self.torn(name, reason));
        }
        let folder = to.parent().unwrap_or(to);
        fs::create_dir_all(folder).map_err(ArchiveError::io(folder))?;
        let mut file = File::create(to).map_err(ArchiveError::io(to))?;
        let mut hasher = blake3::Hasher::new();
        // In ranges, so that a request that is cut short costs a part and not a file of many gigabytes.
        let mut begin = 0;
        while begin < expected.bytes {
            let end = expected.bytes.min(begin + PART_BYTES as u64);
            let part = self.store.get_range(&key, begin..end).await;
            let part = part.map_err(|source| self.missing_or_failed(name, source))?;
            hasher.update(&part);
            file.write_all(&part).map_err(ArchiveError::io(to))?;
            begin = end;
        }
        file.sync_all().map_err(ArchiveError::io(to))?;
        let content = ContentHash(*hasher.finalize().as_bytes());
        if content == expected.blake3 {
            return Ok(());
        }
        let what = self.place(name);
        Err(ArchiveError::other_content(what, content, expected.blake3))
    }

    fn key(&self, name: &str) -> Key {
        name.split('/')
            .fold(self.root.clone(), |key, part| key.join(part))
    }

    /// As people would look for it.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn failed(&self, name: &str, source: object_store::Error) -> ArchiveError {
        ArchiveError::Store {
            what: self.place(name),
            source,
        }
    }

    /// An object that a manifest names was there.
    fn missing_or_failed(&self, name: &str, source: object_store::Error) -> ArchiveError {
        match source {
            object_store::Error::NotFound { .. } => self.torn(name, "it is missing".into()),
            source => self.failed(name, source),
        }
    }

    pub(super) fn torn(&self, name: &str, reason: String) -> ArchiveError {
        ArchiveError::Torn {
            what: self.place(name),
            reason,
        }
    }
}

fn connect(url: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    let retry = RetryConfig {
        retry_timeout: RETRY_MAX,
        ..RetryConfig::default()
    };
    match url.scheme() {
        "file" => local(url),
        "s3" => {
            retouch_credentials::use_ring();
            let store = AmazonS3Builder::from_env().with_url(url.as_str());
            let store = store.with_retry(retry).build();
            Ok(Arc::new(store.map_err(|error| error.to_string())?))
        }
        "gs" => {
            retouch_credentials::use_ring();
            let store = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            let store = store.with_retry(retry).build();
            Ok(Arc::new(store.map_err(|error| error.to_string())?))
        }
        other => Err(format!("{other}: is none of file:, s3: and gs:")),
    }
}

fn local(url: &Url) -> Result<Arc<dyn ObjectStore>, String> {
    let folder = url.to_file_path();
    let folder = folder.map_err(|()| "it names no folder of this machine".to_owned())?;
    let store = fs::create_dir_all(&folder)
        .map_err(|error| error.to_string())
        .and_then(|()| LocalFileSystem::new_with_prefix(&folder).map_err(|e| e.to_string()))?;
    // As durable as other stores, and without the folders of what was deleted.
    Ok(Arc::new(
        store.with_fsync(true).with_automatic_cleanup(true),
    ))
}

/// The next bytes of a file; none at its end.
fn read_part(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut part = Vec::with_capacity(PART_BYTES);
    file.take(PART_BYTES as u64).read_to_end(&mut part)?;
    Ok(part)
}
