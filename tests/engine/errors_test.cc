#include "engine/errors.h"

#include <errno.h>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace spindle {
namespace {

TEST(Errors, CodeFollowsFromErrno) {
  const struct {
    int error_number;
    absl::StatusCode code;
  } cases[] = {
      {ENOSPC, absl::StatusCode::kResourceExhausted},
      {EDQUOT, absl::StatusCode::kResourceExhausted},
      {ENOMEM, absl::StatusCode::kResourceExhausted},
      {EACCES, absl::StatusCode::kPermissionDenied},
      {EROFS, absl::StatusCode::kPermissionDenied},
      {ENOENT, absl::StatusCode::kNotFound},
      {EEXIST, absl::StatusCode::kAlreadyExists},
      {EINVAL, absl::StatusCode::kInvalidArgument},
      {EOPNOTSUPP, absl::StatusCode::kUnimplemented},
      {ENOSYS, absl::StatusCode::kUnimplemented},
      {EAGAIN, absl::StatusCode::kUnavailable},
      {EBUSY, absl::StatusCode::kUnavailable},
      {EIO, absl::StatusCode::kInternal},
      {12345, absl::StatusCode::kInternal},
  };
  for (const auto& c : cases) {
    const absl::Status status = errno_status(c.error_number, "x");
    EXPECT_EQ(status.code(), c.code) << c.error_number;
    EXPECT_EQ(errno_of(status), c.error_number);
    EXPECT_EQ(errno_for(status), c.error_number);
  }
}

TEST(Errors, MessageNamesTheCallAndTheErrno) {
  const absl::Status status = errno_status(ENOSPC, "pwritev of 'a.img'");
  EXPECT_TRUE(absl::StartsWith(status.message(), "pwritev of 'a.img': "));
  EXPECT_TRUE(absl::StrContains(status.message(), "No space left"));
}

TEST(Errors, StatusWithoutErrnoCarriesNoneButMapsToOne) {
  EXPECT_EQ(errno_of(absl::OkStatus()), std::nullopt);
  EXPECT_EQ(errno_for(absl::OkStatus()), 0);
  EXPECT_EQ(errno_of(absl::OutOfRangeError("x")), std::nullopt);
  EXPECT_EQ(errno_for(absl::OutOfRangeError("x")), EINVAL);
  EXPECT_EQ(errno_for(absl::ResourceExhaustedError("x")), ENOSPC);
  EXPECT_EQ(errno_for(absl::CancelledError("x")), ECANCELED);
  EXPECT_EQ(errno_for(absl::UnimplementedError("x")), ENOTSUP);
  EXPECT_EQ(errno_for(absl::DataLossError("x")), EIO);
}

TEST(Errors, ContextKeepsCodeAndErrno) {
  const absl::Status status =
      with_context(errno_status(ENOSPC, "pwritev"), "opening 'a.img'");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(errno_of(status), ENOSPC);
  EXPECT_TRUE(absl::StartsWith(status.message(), "opening 'a.img': pwritev: "));
  EXPECT_TRUE(with_context(absl::OkStatus(), "x").ok());
}

}  // namespace
}  // namespace spindle
