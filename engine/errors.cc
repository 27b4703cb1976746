#include "engine/errors.h"

#include <errno.h>
#include <string.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace spindle {
namespace {

constexpr char kErrnoPayload[] = "type.spindle/errno";
constexpr char kQemuWordsPayload[] = "type.spindle/qemu-words";

absl::StatusCode code_of(int error_number) {
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return absl::StatusCode::kResourceExhausted;
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::StatusCode::kPermissionDenied;
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return absl::StatusCode::kNotFound;
    case EEXIST:
      return absl::StatusCode::kAlreadyExists;
    case EINVAL:
    case EISDIR:
    case ENOTDIR:
    case ENAMETOOLONG:
    case ELOOP:
      return absl::StatusCode::kInvalidArgument;
    case ENOSYS:
    case EOPNOTSUPP:
#if ENOTSUP != EOPNOTSUPP
    case ENOTSUP:
#endif
      return absl::StatusCode::kUnimplemented;
    case EAGAIN:
    case EBUSY:
    case ETXTBSY:
      return absl::StatusCode::kUnavailable;
    case ECANCELED:
      return absl::StatusCode::kCancelled;
    case ETIMEDOUT:
      return absl::StatusCode::kDeadlineExceeded;
    default:
      return absl::StatusCode::kInternal;
  }
}

// Both shapes of strerror_r: GNU's returns the text, POSIX's fills the buffer.
[[maybe_unused]] const char* strerror_text(const char* text, const char*) {
  return text;
}
[[maybe_unused]] const char* strerror_text(int result, const char* buffer) {
  return result == 0 ? buffer : "unknown error";
}

}  // namespace

absl::Status with_errno(int error_number, absl::Status status) {
  status.SetPayload(kErrnoPayload, absl::Cord(absl::StrCat(error_number)));
  return status;
}

absl::Status errno_status(int error_number, absl::string_view what) {
  char buffer[128];
  const char* const text =
      strerror_text(strerror_r(error_number, buffer, sizeof(buffer)), buffer);
  return with_errno(error_number, absl::Status(code_of(error_number),
                                               absl::StrCat(what, ": ", text)));
}

std::optional<int> errno_of(const absl::Status& status) {
  const auto payload = status.GetPayload(kErrnoPayload);
  int error_number = 0;
  if (!payload.has_value()) return std::nullopt;
  if (!absl::SimpleAtoi(std::string(*payload), &error_number))
    return std::nullopt;
  return error_number;
}

int errno_for(const absl::Status& status) {
  if (const std::optional<int> carried = errno_of(status)) return *carried;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EINVAL;
    case absl::StatusCode::kResourceExhausted:
      return ENOSPC;
    case absl::StatusCode::kCancelled:
      return ECANCELED;
    case absl::StatusCode::kPermissionDenied:
      return EPERM;
    case absl::StatusCode::kUnauthenticated:
      return EACCES;
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kAlreadyExists:
      return EEXIST;
    case absl::StatusCode::kUnimplemented:
      return ENOTSUP;
    case absl::StatusCode::kUnavailable:
      return EAGAIN;
    case absl::StatusCode::kFailedPrecondition:
      return EBUSY;
    case absl::StatusCode::kDeadlineExceeded:
      return ETIMEDOUT;
    default:
      return EIO;
  }
}

absl::Status with_context(const absl::Status& status,
                          absl::string_view context) {
  if (status.ok()) return status;
  absl::Status result(status.code(),
                      absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload(
      [&result](absl::string_view type, const absl::Cord& payload) {
        result.SetPayload(type, payload);
      });
  return result;
}

absl::Status with_qemu_words(absl::Status status, absl::string_view words) {
  if (!status.ok()) status.SetPayload(kQemuWordsPayload, absl::Cord(words));
  return status;
}

std::string qemu_words(const absl::Status& status) {
  const auto words = status.GetPayload(kQemuWordsPayload);
  return words.has_value() ? std::string(*words)
                           : std::string(status.message());
}

absl::Status with_contexts(const absl::Status& status,
                           absl::string_view context, absl::string_view words) {
  const std::string own = qemu_words(status);
  return with_qemu_words(with_context(status, context),
                         words.empty() ? own : absl::StrCat(words, ": ", own));
}

}  // namespace spindle
