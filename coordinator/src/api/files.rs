//! Files that jobs are rendered with: taken in, listed and shown.

use super::body::said_length;
use super::error::{ErrorType, Refusal};
use super::given::Judged;
use super::limits::{PART_BYTES, UPLOAD_PATIENCE};
use super::{Api, given};
use crate::picture;
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, LOCATION};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use protocol::job::{FILE_BYTES_MAX, FileDigest};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::BufReader;
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileKind {
    /// Changes of the model's weights.
    Lora,
    /// To begin with.
    Picture,
}

/// A file that jobs can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = File)]
pub(crate) struct FileBody {
    /// What jobs know it by: hex blake3 of what is kept. Of a LoRA file that is the file, of a picture its pixels as PNG.
    #[schema(value_type = String)]
    pub(crate) id: FileDigest,
    #[schema(inline)]
    pub(crate) kind: FileKind,
    /// How many are kept.
    pub(crate) bytes: u64,
    /// Of a picture, in pixels.
    pub(crate) width: Option<u32>,
    /// Of a picture, in pixels.
    pub(crate) height: Option<u32>,
}

/// The files that are there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FileList {
    files: Vec<FileBody>,
}

/// A file, in a path.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct FilePath {
    /// The file's id.
    #[param(pattern = "^[0-9a-f]{64}$")]
    file: String,
}

impl FilePath {
    fn id(&self) -> Result<FileDigest, Refusal> {
        let wrong = |error| Refusal::not_found("unknown_file", format!("no file's id: {error}"));
        self.file.parse().map_err(wrong)
    }
}

/// Send a file that jobs are to be rendered with.
///
/// A LoRA file, or a picture to begin with: PNG or JPEG. The same bytes sent again have the same id.
#[utoipa::path(
    post, operation_id = "send_file", path = "/v1/files", tag = "files",
    request_body(content = [u8], content_type = "application/octet-stream", description = "The file's bytes; Content-Length says how many"),
    responses(
        (status = 201, description = "It is there", body = FileBody, headers(("Location" = String, description = "Where it is"))),
        (status = 408, description = "The rest of it did not come", body = super::error::ErrorBody),
        (status = 411, description = "Its length is not said", body = super::error::ErrorBody),
        (status = 413, description = "It is too large", body = super::error::ErrorBody),
        (status = 429, description = "There is no room for it now", body = super::error::ErrorBody, headers(("Retry-After" = u64, description = "Seconds"))),
        super::openapi::Refusals,
    )
)]
pub(super) async fn send(
    request: HttpRequest,
    api: web::Data<Api>,
    mut payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let total = said_length(&request).ok_or_else(|| {
        let status = StatusCode::LENGTH_REQUIRED;
        let message = "how long the file is must be said: send Content-Length";
        Refusal::new(status, ErrorType::InvalidRequestError, "length_required", message)
    })?;
    if total > FILE_BYTES_MAX {
        return Err(Refusal::too_large(Some(total), FILE_BYTES_MAX));
    }
    if total == 0 {
        return Err(Refusal::invalid("the file is empty: send its bytes as the body"));
    }
    let visit = api.visit(&request);
    let mut arrival = api.coordinator.take_file(&visit, total)?;
    let mut part = BytesMut::new();
    while let Some(next) = timeout(UPLOAD_PATIENCE, payload.next()).await.map_err(|_| late())? {
        let breaks_off = |error| Refusal::invalid(format!("the body breaks off: {error}"));
        part.extend_from_slice(&next.map_err(breaks_off)?);
        if part.len() >= PART_BYTES {
            arrival = arrival.write(part.split().freeze()).await?;
        }
    }
    arrival = arrival.write(part.freeze()).await?;
    let judged = api.judge(given::Source::File(arrival.reader()?, total)).await?;
    let kept = match judged {
        Judged::Picture(picture) => {
            let (bytes, size) = (picture.png.len() as u64, (picture.width, picture.height));
            let id = api.coordinator.keep_file(&visit, picture.png.into()).await?;
            FileBody::of(id, bytes, Some(size))
        }
        Judged::Lora => FileBody::of(arrival.finish().await?, total, None),
    };
    let at = (LOCATION, format!("/v1/files/{}", kept.id));
    Ok(HttpResponse::Created().insert_header(at).json(kept))
}

fn late() -> Refusal {
    let status = StatusCode::REQUEST_TIMEOUT;
    let message =
        format!("nothing more of the file came for {} s: send it again", UPLOAD_PATIENCE.as_secs());
    Refusal::new(status, ErrorType::InvalidRequestError, "file_cut_off", message)
}

/// List the files that jobs can name.
#[utoipa::path(
    get, operation_id = "list_files", path = "/v1/files", tag = "files",
    responses((status = 200, description = "Those that are there", body = FileList), super::openapi::Refusals)
)]
pub(super) async fn list(api: web::Data<Api>) -> Result<web::Json<FileList>, Refusal> {
    Ok(web::Json(FileList { files: api.files().await? }))
}

/// Show a file.
#[utoipa::path(
    get, operation_id = "show_file", path = "/v1/files/{file}", tag = "files", params(FilePath),
    responses((status = 200, description = "It is there", body = FileBody), super::openapi::Refusals)
)]
pub(super) async fn show(
    api: web::Data<Api>,
    path: web::Path<FilePath>,
) -> Result<web::Json<FileBody>, Refusal> {
    let id = path.id()?;
    api.file(id).await?.map(web::Json).ok_or_else(|| given::unknown(id))
}

/// Fetch a picture, as workers read it.
#[utoipa::path(
    get, operation_id = "fetch_picture", path = "/v1/files/{file}/picture", tag = "files", params(FilePath),
    responses(
        (status = 200, description = "The picture", content_type = "image/png", body = [u8]),
        super::openapi::Refusals,
    )
)]
pub(super) async fn picture(
    api: web::Data<Api>,
    path: web::Path<FilePath>,
) -> Result<HttpResponse, Refusal> {
    let id = path.id()?;
    let file = api.file(id).await?.ok_or_else(|| given::unknown(id))?;
    if file.kind != FileKind::Picture {
        let message = format!("the file {id} is no picture");
        return Err(Refusal::not_found("not_a_picture", message));
    }
    let files = api.coordinator.files().clone();
    let read = web::block(move || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut files.read(id)?, &mut bytes)?;
        std::io::Result::Ok(bytes)
    });
    let bytes = read.await.map_err(|error| Refusal::internal(error.to_string()))?;
    let bytes = bytes.map_err(|_| given::unknown(id))?;
    // What has this id never changes.
    let lasting = (CACHE_CONTROL, "private, max-age=86400, immutable");
    Ok(HttpResponse::Ok().content_type("image/png").insert_header(lasting).body(bytes))
}

impl FileBody {
    fn of(id: FileDigest, bytes: u64, size: Option<(u32, u32)>) -> Self {
        let kind = if size.is_some() { FileKind::Picture } else { FileKind::Lora };
        let (width, height) = size.unzip();
        Self { id, kind, bytes, width, height }
    }

    /// What a file is, from its beginning.
    fn look(id: FileDigest, bytes: u64, file: File) -> Self {
        Self::of(id, bytes, picture::size(BufReader::new(file)))
    }
}

impl Api {
    /// All files that are there.
    pub(super) async fn files(&self) -> Result<Vec<FileBody>, Refusal> {
        let files = self.coordinator.files().clone();
        let look = move || {
            let all = files.all().into_iter();
            let look = |(id, bytes)| Some(FileBody::look(id, bytes, files.read(id).ok()?));
            all.filter_map(look).collect()
        };
        web::block(look).await.map_err(|error| Refusal::internal(error.to_string()))
    }

    /// A file, if it is there.
    pub(super) async fn file(&self, id: FileDigest) -> Result<Option<FileBody>, Refusal> {
        let files = self.coordinator.files().clone();
        let look = move || {
            let file = files.has(id).then(|| files.read(id).ok()).flatten()?;
            let bytes = file.metadata().ok()?.len();
            Some(FileBody::look(id, bytes, file))
        };
        web::block(look).await.map_err(|error| Refusal::internal(error.to_string()))
    }
}
