#include "formats/filters/filters.h"

#include "formats/filters/blkdebug_driver.h"
#include "formats/filters/compress_driver.h"
#include "formats/filters/copy_on_read_driver.h"
#include "formats/filters/null_driver.h"
#include "formats/filters/quorum_driver.h"
#include "formats/filters/throttle_driver.h"

namespace spindle {

std::vector<const DriverFilter*> builtin_filters() {
  return {blkdebug_filter(), compress_filter(), copy_on_read_filter(),
          null_aio_filter(), null_co_filter(),  quorum_filter(),
          throttle_filter()};
}

}  // namespace spindle
